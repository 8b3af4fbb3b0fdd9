"""kill -9 at random moments of every stage: `python -m benchmarks.kill --kills 60 --seed 1`, from the repository's root.

Each run is a process of its own, forked so that it needn't import everything again. After each kill: nothing under a final name that doesn't
verify. After the last kill of a stage the same command runs to its end: the same result as without kills, and nothing hidden left over.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def command(*options: Any) -> None:
    """A command as a user types it, in this process; raises unless it ends with 0."""
    from typer.testing import CliRunner

    from saeuron.export.cli import app

    done = CliRunner().invoke(app, [str(o) for o in options])
    if done.exit_code:
        raise RuntimeError(f"{options[0]}: exit code {done.exit_code}: {done.output[-500:]}")


@dataclasses.dataclass
class Stage:
    """One stage."""

    name: str
    run: Callable[[Path], None]
    """does the job in a folder"""
    check: Callable[[Path], Any]
    """raises unless what lies under the final names is whole; what must be the same at the end as without kills, None if nothing is there yet"""
    prepare: Callable[[Path], None] = lambda folder: None


def verified(root: Path) -> Any:
    """The manifest of an artifact whose files are all as it says, and agree."""
    from saeuron.validation.artifact import contents, manifest
    from saeuron.validation.artifact.golden import Golden
    from saeuron.validation.trust.agreement import check_said

    record = manifest.read(root)
    contents.check(root, record)
    wrong = check_said(root, record, Golden.load(root / "edit" / "golden.safetensors"))
    if wrong:
        raise AssertionError(wrong)
    return record


_EXPORT = ("export", "--concepts", "Neon", "--format", "checkpoint", "--proof", "short", "--steps", 2)
_COLLECT = (
    "collect", "--model", "demo", "--sae", "demo:saes", "--hookpoint", "up_blocks.1.attentions.1", "--steps", 2, "--guidance", 3, "--batch-size", 1,
)  # fmt: skip
_PROMPTS = '[prompts]\nHouse = ["a house", "An image of House.", "house"]\nplain = ["a car", "a boat", "a star"]\n'
_TRAIN = (
    "train", "--model", "demo", "--hookpoint", "up_blocks.1.attentions.1", "--prompts", "demo:prompts.txt", "--sampling-steps", 2, "--guidance", 3, "--tokens", 1536,
    "--batch", 128, "--pictures", 8, "--held-out", 8, "--batch-size", 4, "--expansion", 2, "--k", 4, "--checkpoint-every", 2,
)  # fmt: skip
_EVALUATE = (
    "evaluate",
    "--backend",
    "checkpoint",
    "--objects",
    "House,Boat",
    "--styles",
    "Neon,Sepia",
    "--seeds",
    "1",
    "--steps",
    2,
    "--batch-size",
    1,
)


def _exported(folder: Path) -> Any:
    out = folder / "out"
    return verified(out)["edit"]["sha256"] if out.exists() else None


def _replaced(folder: Path) -> Any:
    verified(folder / "out")
    return "an artifact"


def _collected(folder: Path) -> Any:
    from saeuron.editor.features.activations import ConceptActivations

    files = sorted((folder / "a").glob("*.safetensors")) if (folder / "a").is_dir() else []
    held = {path.name: ConceptActivations.load(path).means.numpy().tobytes() for path in files}
    return held or None


def _trained(folder: Path) -> Any:
    from saeuron.editor.sae.sae import SparseAutoencoder

    report = folder / "sae" / "training.json"
    if not report.exists():
        return None
    said = json.loads(report.read_text())["saes"]
    for name, entry in said.items():
        if SparseAutoencoder.load(folder / "sae", name).sha256() != entry["sha256"]:
            raise AssertionError(f"the SAE at {name} is not the one on record")
    return {name: entry["sha256"] for name, entry in said.items()}


def _evaluated(folder: Path) -> Any:
    from saeuron.editor.common.files import read_json

    result = folder / "evaluation" / "evaluation.json"
    if not result.exists():
        return None
    said = read_json(result)
    if not said.get("finished"):
        return None
    return json.dumps({name: part["concepts"] for name, part in said["backends"].items()}), (
        folder / "evaluation" / "verdicts.csv"
    ).read_bytes()


def _build(folder: Path) -> None:
    """Builds with a stand-in for the library, which writes random engines: the real one takes minutes, and its part is a process of its own."""
    from saeuron.export.formats import tensorrt
    from saeuron.export.ship import add_engines
    from saeuron.validation.artifact.engines import Target

    def built(job: dict[str, Any], say: Any) -> dict[str, Any]:
        Path(job["engine"]).write_bytes(os.urandom(1 << 16))
        return {"shapes": {}, "types": {}, "bytes": 1 << 16, "seconds": 1.0, "peak_bytes": None}

    tensorrt.run_worker = built
    tensorrt.tensorrt_module = lambda backend: type("Library", (), {"__version__": "1.7"})
    add_engines.add_engines(folder / "artifact", tensorrt.EngineSettings(), [Target("trt-rtx", ("sm86",))], overwrite=True)


def _built(folder: Path) -> Any:
    from saeuron.validation.artifact import engines

    record = verified(folder / "artifact")
    wrong = [line for line in engines.check_entries(folder / "artifact", record) if "needed are" not in line]
    if wrong:
        raise AssertionError(wrong)
    return sorted(record.engines)


def _to_collect(folder: Path) -> None:
    (folder / "p.toml").write_text(_PROMPTS)


def _to_build(folder: Path) -> None:
    """An artifact in form, with engines: what is checked here are its files, not its networks."""
    from tests.faults.readers import _artifact

    (folder / "artifact").mkdir()
    _artifact(folder / "artifact")
    _build(folder)


def stages(artifact: Path | None) -> list[Stage]:
    """All stages; `artifact`: of the demo, as a checkpoint, for `evaluate`, which is left out without one."""
    found = [
        Stage("export", lambda f: command(*_EXPORT, "--output", f / "out"), _exported),
        Stage(
            "export --overwrite",
            lambda f: command(*_EXPORT, "--output", f / "out", "--overwrite"),
            _replaced,
            lambda f: command(*_EXPORT, "--output", f / "out", "--no-validate"),
        ),
        Stage("collect", lambda f: command(*_COLLECT, "--prompts", f / "p.toml", "--output", f / "a"), _collected, _to_collect),
        Stage("train", lambda f: command(*_TRAIN, "--output", f / "sae"), _trained),
    ]
    found.append(Stage("build", _build, _built, _to_build))
    if artifact is not None:
        found.append(
            Stage("evaluate", lambda f: command(*_EVALUATE[:1], artifact, *_EVALUATE[1:], "--output", f / "evaluation"), _evaluated)
        )
    return found


def forked(job: Callable[[], None], delay: float | None) -> tuple[bool, float]:
    """Run a job in a process of its own, killed after `delay` seconds; whether it was killed before its end, and how long it took."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
                job()
            code = 0
        except BaseException as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
            sys.stdout.flush()
        finally:
            os._exit(code)
    status = None
    while status is None:
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            status = raw
        elif delay is not None and time.perf_counter() - began >= delay:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        else:
            time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return True, time.perf_counter() - began
    if status:
        raise RuntimeError("a run that was not killed failed")
    return False, time.perf_counter() - began


def kill(stage: Stage, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a stage that often; raises at the first thing that isn't whole.

    Returns:
        `kills` that came before the end, `late` ones, `there`: after how many kills a whole result lay under the final name, `seconds` of a run.
    """
    counts: dict[str, Any] = {"stage": stage.name, "kills": 0, "late": 0, "there": 0}
    with tempfile.TemporaryDirectory() as place:
        plain, folder = Path(place) / "plain", Path(place) / "killed"
        for one in (plain, folder):
            one.mkdir()
            stage.prepare(one)
        _, counts["seconds"] = forked(lambda: stage.run(plain), None)
        expected = stage.check(plain)
        while counts["kills"] < kills and counts["late"] < 2 * kills:
            killed, _ = forked(lambda: stage.run(folder), rng.uniform(0, counts["seconds"]))
            counts["kills" if killed else "late"] += 1
            found = stage.check(folder)
            counts["there"] += killed and found is not None
            if found is not None:
                if found != expected:
                    raise AssertionError(f"{stage.name}: another result than without kills")
                if stage.name in ("export", "collect", "train"):  # they refuse to do it once more
                    shutil.rmtree(folder)
                    folder.mkdir()
                    stage.prepare(folder)
        if stage.check(folder) is None or stage.name in ("build", "export --overwrite", "evaluate"):
            forked(lambda: stage.run(folder), None)
        if stage.check(folder) != expected:
            raise AssertionError(f"{stage.name}: another result than without kills")
        hidden = [p.relative_to(folder).as_posix() for p in folder.rglob(".*")]
        if hidden:
            raise AssertionError(f"{stage.name}: left over: {hidden}")
    return counts


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="in all, shared by the stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifact", type=Path, help="of the demo, without House and Neon, as a checkpoint; default: exported first")
    parser.add_argument("--only", help="a stage")
    options = parser.parse_args()
    import torch

    import saeuron.editor.sae.training
    import saeuron.export.ship.artifact
    import saeuron.validation.evidence.evaluate  # noqa: F401

    torch.set_num_threads(1)  # a forked process can't use its parent's threads
    os.environ["SAEURON_CACHE"] = tempfile.mkdtemp()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        artifact = options.artifact
        if artifact is None and options.only in (None, "evaluate"):
            artifact = Path(place) / "artifact"
            forked(
                lambda: command(
                    "export", "--concepts", "Neon,House", "--output", artifact, "--format", "checkpoint", "--no-validate", "--steps", 2
                ),
                None,
            )
        chosen = [s for s in stages(artifact) if not options.only or s.name == options.only]
        total = 0
        for stage in chosen:
            found = kill(stage, -(-options.kills // len(chosen)), rng)
            total += found["kills"]
            print(
                f"{found['stage']:<20} {found['kills']:>3} kills, {found['late']} too late, {found['there']:>3} with the whole result there; one run {found['seconds']:.1f} s",
                flush=True,
            )
    print(f"{total} kills survived, seed {options.seed}")


if __name__ == "__main__":
    main()
