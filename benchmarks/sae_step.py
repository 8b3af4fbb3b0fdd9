"""One SAE training step, fast against plainly dense: `python benchmarks/sae_step.py --help`.

Both take the same steps (loss, backward, parallel gradient removed, Adam, decoder renormalised) from the same weights on the same
tokens, each run in a process of its own, in alternating order. Both use the same fused Adam and the same constraints in place;
they differ in the loss and its gradients alone (`editor/sae/sae_step.py` against `tests/editor/dense_step.py`).

Tokens are sparse sums of random directions with noise. One step warms up and isn't timed. Memory is the largest resident set
of the process (VmHWM; GB are 10^9 bytes): `peak` all of it, `own` without what Python and torch hold after import. A run's
`cpu` far below its seconds times the threads says that other processes competed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def _memory(field: str) -> float:
    """A `Vm…` line of this process's status, in GB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def child(a: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps one way and measure."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    import torch
    from tests.editor.dense_step import dense_step

    from saeuron.editor.sae.formats.config import SaeConfig
    from saeuron.editor.sae.initialise import initialise
    from saeuron.editor.sae.sae import SparseAutoencoder
    from saeuron.editor.sae.sae_step import constrain_gradient, normalise_decoder, step_loss

    torch.set_num_threads(a.threads)
    generator = torch.Generator().manual_seed(a.seed)
    base = _memory("VmRSS")
    sae = SparseAutoencoder(SaeConfig(a.d, a.latents, a.k))
    directions = torch.randn(2 * a.d, a.d, generator=generator)

    def batch() -> torch.Tensor:
        tokens = torch.randn(a.tokens, a.d, generator=generator)
        for part in tokens.split(256):  # so that making tokens leaves no trace in the memory figures
            chosen = torch.randint(len(directions), (len(part), 24), generator=generator)
            part.add_(torch.nn.functional.embedding_bag(chosen, directions, mode="sum"))
        return tokens

    initialise(sae, batch()[:1024], generator)
    dead = torch.arange(a.latents) < a.dead if a.dead else None
    optimizer = torch.optim.Adam(sae.parameters(), lr=4e-4, fused=True)
    losses, seconds, cpu = [], [], []
    for _ in range(a.steps + 1):
        x = batch()
        start, start_cpu = time.perf_counter(), time.process_time()
        if a.child == "dense":
            loss = dense_step(sae, x, batch_topk=a.selection == "batch", dead=dead)[0]
        else:
            loss = step_loss(sae, x, batch_topk=a.selection == "batch", dead=dead, chunk=a.chunk).loss
        loss.backward()
        constrain_gradient(sae)
        optimizer.step()
        normalise_decoder(sae)
        losses.append(loss.item())
        del loss, x
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = _memory("VmHWM")
    return {
        "seconds": seconds[1:],
        "cpu": cpu[1:],
        "losses": losses,
        "peak_gb": peak,
        "own_gb": peak - base,
    }


def main() -> None:
    """Run both ways in turn; JSON goes to stdout, a table to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--d", type=int, default=1280)
    parser.add_argument("--latents", type=int, default=20480)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="timed steps a run")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind; the order turns around each round")
    parser.add_argument("--selection", choices=("batch", "token"), default="batch", help="BatchTopK or TopK")
    parser.add_argument("--dead", type=int, default=0, help="latents that AuxK treats as dead")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens that the fast step encodes at once")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--child", choices=("dense", "fast"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(child(a)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"dense": [], "fast": []}
    for number in range(a.rounds):
        for kind in ("dense", "fast") if number % 2 == 0 else ("fast", "dense"):
            done = subprocess.run([sys.executable, *sys.argv, "--child", kind], check=True, stdout=subprocess.PIPE, text=True)
            runs[kind].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {kind} done", file=sys.stderr)
    speed = {kind: a.tokens / statistics.median(s for r in rs for s in r["seconds"]) for kind, rs in runs.items()}
    cpu = {kind: statistics.median(s for r in rs for s in r["cpu"]) for kind, rs in runs.items()}
    peak = {kind: max(r["peak_gb"] for r in rs) for kind, rs in runs.items()}
    own = {kind: max(r["own_gb"] for r in rs) for kind, rs in runs.items()}
    pairs = list(zip(runs["dense"][0]["losses"], runs["fast"][0]["losses"], strict=True))
    result = {
        "settings": {k: v for k, v in vars(a).items() if k not in ("child", "json")},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "tokens_per_second": speed,
        "speedup": speed["fast"] / speed["dense"],
        "cpu_seconds_a_step": cpu,
        "peak_gb": peak,
        "peak_ratio": peak["fast"] / peak["dense"],
        "own_gb": own,
        "own_ratio": own["fast"] / own["dense"],
        "largest_loss_difference": max(abs(x - y) for x, y in pairs),
        "losses": pairs,
        "runs": runs,
    }
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    rows = (
        ("tokens a second", speed, ".0f"),
        ("CPU seconds a step", cpu, ".2f"),
        ("peak GB", peak, ".2f"),
        ("  without imports", own, ".2f"),
    )
    print(f"{'':22}{'dense':>12}{'fast':>12}{'fast / dense':>15}", file=sys.stderr)
    for name, found, form in rows:
        print(f"{name:22}{found['dense']:12{form}}{found['fast']:12{form}}{found['fast'] / found['dense']:15.2f}", file=sys.stderr)
    print(f"{'loss of the last step':22}{pairs[-1][0]:12.6f}{pairs[-1][1]:12.6f}{abs(pairs[-1][0] - pairs[-1][1]):15.1e}", file=sys.stderr)


if __name__ == "__main__":
    main()
