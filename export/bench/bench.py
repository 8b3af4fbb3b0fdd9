"""Times the edit beside the UNet that carries it: what the hook and each gate cost, as a share of the unedited UNet's forward.

A percent of a forward that takes many seconds drowns in a machine's noise. So the edit is timed alone, on the tokens that the
unedited UNet gives at its hookpoint, and so is the UNet, in rounds that take turns; their medians make the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...editor.common.names import GATES
from ...editor.common.writing import temporary
from ...editor.denoisers.families import denoiser_of
from ...editor.denoisers.sampling import observe
from ...editor.edit.bake import bake
from ...editor.edit.edit import Edit
from ...editor.edit.hook import AblationHook
from ...editor.sae.sae import SparseAutoencoder
from ...validation.artifact import engines
from ..formats.onnx import denoiser_component
from .graphs import Edits, Tensors, export_edit, export_unet, opened

HOOK, UNEDITED = "hook", "unedited"

Progress = Callable[[str], None]
Calls = dict[str, Callable[[], Any]]
"""variant → what is timed: of the unedited UNet a whole forward, else the edit alone"""


@dataclass(frozen=True)
class Row:
    """One variant in one backend."""

    backend: str
    variant: str
    seconds: float
    """median of the edit alone; of the unedited UNet, of a whole forward"""
    ratio: float
    """to the unedited UNet's forward, medians of the same rounds"""
    added_bytes: int
    """what the edit adds to an artifact's weights"""


def bench(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], backends: Sequence[str], sides: tuple[int, int], text: int = 77, rounds: int = 7,
    device: str = "cpu", provider: str = "CPUExecutionProvider", progress: Progress = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, at a batch of 2: guidance makes two rows of a picture.

    Args:
        unet: the original UNet, on the CPU.
        edit: of one hookpoint or several, which are timed together.
        saes: hookpoint → SAE.
        backends: `torch`, `onnx`, `trt`, `trt-rtx`.
        sides: rows and columns of the latents.
        text: tokens of the text.
        rounds: runs of each variant.
        device: of torch.
        provider: of ONNX Runtime, by its own name.
        progress: told what is being timed.

    Returns:
        `{"rows": [Row as a dict, …], "rounds", "fired": share of decisions that fire on the input, "tokens": hookpoint → shape, "dtype",
        "hardware": backend → what ran it}`.
    """
    torch.manual_seed(0)
    part = denoiser_component(unet, text, sides)
    tokens = dict.fromkeys(edit.hookpoints, torch.empty(0))
    look = observe(unet, dict.fromkeys(tokens, "output"), lambda timestep, seen: tokens.update(seen))
    rows: list[Row] = []
    with torch.no_grad(), temporary() as folder:
        with look, AblationHook(unet, edit, saes, record=True, record_tokens=True) as hook:
            denoiser_of(unet).call(unet, part.inputs)
        fired = torch.cat([d.fires.float().flatten() for found in hook.decisions.values() for d in found]).mean()
        by_token = any(part.how.gain == "token" for part in edit.hookpoints.values())
        gates = GATES if edit.residual == "keep" and not by_token else ("exact",)  # the only one that knows every latent
        places = {name: block.places for name, block in hook.seen[0].items()}
        given = [None if p is None else torch.from_numpy(p[None]).float() for p in (places[name] for name in edit.hookpoints)]
        edits = {gate: Edits(bake(unet, edit, saes, gate).ablations, given) for gate in gates}
        added = {gate: sum(t.nbytes for t in module.state_dict().values()) for gate, module in edits.items()}
        graphs = {}
        if set(backends) - {"torch"}:
            progress("exporting graphs")
            arguments = (torch.tensor(500.5), *tokens.values())
            graphs = {gate: export_edit(module, arguments, folder / gate) for gate, module in edits.items()}
            graphs[UNEDITED] = export_unet(part, folder)
        for backend in backends:
            with ExitStack() as stack:
                progress(f"{backend}: opening")
                if backend == "torch":
                    stack.callback(unet.to, "cpu")
                    calls = _in_torch(unet, edit, saes, edits, part.inputs, tokens, places, device)
                else:
                    calls = {name: opened(graph, backend, provider, stack) for name, graph in graphs.items()}
                times = timed(calls, rounds, lambda text, by=backend: progress(f"{by}: {text}"))  # type: ignore[misc]
            medians = {name: statistics.median(times[name]) for name in (UNEDITED, HOOK, *gates) if name in times}
            rows += [Row(backend, name, m, m / medians[UNEDITED], added.get(name, 0)) for name, m in medians.items()]
    cpu = f"CPU, {torch.get_num_threads()} threads"
    hardware = {
        "torch": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "onnx": cpu if provider == "CPUExecutionProvider" else provider,
    }
    return {
        "rows": [vars(r) for r in rows], "rounds": rounds, "fired": float(fired), "tokens": {name: list(t.shape) for name, t in tokens.items()},
        "dtype": str(unet.dtype).removeprefix("torch."), "hardware": {name: hardware.get(name) or engines.gpu().name for name in backends},
    }  # fmt: skip


def timed(calls: Calls, rounds: int, say: Progress = lambda text: None) -> dict[str, list[float]]:
    """Seconds of each call. All take turns, so that a slow minute of the machine meets all; who begins changes from round to round."""
    names = list(calls)
    for name in 2 * names:  # warm; an engine's second run records its CUDA graph
        calls[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name in names:
            start = time.perf_counter()
            calls[name]()
            found[name].append(time.perf_counter() - start)
        names = [*names[1:], names[0]]
    return found


def _in_torch(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], edits: Mapping[str, Edits], inputs: Tensors, tokens: Tensors,
    places: Mapping[str, Any], device: str,
) -> Calls:  # fmt: skip
    """Calls that return when the device is done."""
    unet.to(device)
    given, here = ({name: value.to(device) for name, value in held.items()} for held in (inputs, tokens))
    timestep, hook = torch.tensor(500.5, device=device), AblationHook(unet, edit, saes)
    hook.timestep = timestep.reshape(1)

    def by_hook() -> None:
        for name, x in here.items():
            hook.edit_tokens(name, x, x, places[name])

    def finished(call: Callable[[], Any]) -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    by_gate = {gate: partial(module.to(device), timestep, *here.values()) for gate, module in edits.items()}
    calls: Calls = {UNEDITED: partial(denoiser_of(unet).call, unet, given), HOOK: by_hook, **by_gate}
    return {name: partial(finished, call) for name, call in calls.items()}
