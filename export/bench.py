"""Times the edit beside the UNet that carries it: what each gate costs, as a share of the unedited UNet's forward.

A percent of a forward that takes many seconds drowns in a machine's noise. So the edit is timed alone, on the map that the
unedited UNet gives at its hookpoint, and so is the UNet, in rounds that take turns; their medians make the ratio. Whole
forwards of each variant stand beside it.
"""

from __future__ import annotations

import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..editor.bake import bake
from ..editor.conditions import conditions_of, unet_arguments
from ..editor.edit import Edit
from ..editor.hook import AblationHook
from ..editor.hookpoints import to_tokens
from ..editor.sae import SparseAutoencoder
from ..editor.sampling import observe
from ..validation.runners import open_session, run_session
from . import onnx
from .engine_worker import resident_bytes

Progress = Callable[[str], None]
HOOK, UNEDITED = "hook", "unedited"


@dataclass(frozen=True)
class BenchSettings:
    """What is measured."""

    gates: tuple[str, ...]
    backends: tuple[str, ...]
    """`torch`, `onnx`"""
    batch: int = 2
    """rows of the UNet's input; guidance makes two of a picture"""
    height: int | None = None
    """of the latent map; None: the UNet's own"""
    width: int | None = None
    tokens: int = 77
    runs: int = 21
    """of the edit alone"""
    forwards: int = 3
    """of the whole UNet, each variant"""
    timestep: float = 501.0
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One variant in one backend."""

    backend: str
    variant: str
    edit_seconds: float | None
    """median of the edit alone; None for the unedited UNet, or where it can't be timed"""
    ratio: float | None
    """edit alone over the unedited UNet's forward, medians of the same rounds"""
    forward_seconds: float | None
    """median of whole forwards; None where they weren't run"""
    working_bytes: int | None
    """memory that the edit alone takes while it runs; None where the system doesn't tell"""
    added_bytes: int | None
    """what the edit adds to an artifact's weights"""


def bench(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], settings: BenchSettings, progress: Progress = lambda text: None
) -> dict[str, Any]:  # fmt: skip
    """Measure.

    Args:
        unet: the original UNet, on the CPU.
        edit: of one hookpoint or several, which are timed together.
        saes: hookpoint → SAE.
        settings: what is measured.
        progress: told what is being timed.

    Returns:
        `{"rows": [Row as a dict, …], "fired": share of decisions that fire on the input, "settings", "unet_parameters"}`.
    """
    inputs = _inputs(unet, settings)
    maps: dict[str, torch.Tensor] = {}
    with torch.no_grad(), observe(unet, dict.fromkeys(edit.hookpoints, "output"), lambda timestep, found: maps.update(found)):
        unet(*inputs[0], return_dict=False, **inputs[1])
    rows: list[Row] = []
    fired = _fired(unet, edit, saes, inputs)
    if "torch" in settings.backends:
        rows += _torch_rows(unet, edit, saes, settings, inputs, maps, progress)
    if "onnx" in settings.backends:
        rows += _onnx_rows(unet, edit, saes, settings, inputs, maps, progress)
    return {
        "rows": [vars(r) for r in rows], "fired": fired, "settings": vars(settings), "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "maps": {h: list(m.shape) for h, m in maps.items()}, "threads": torch.get_num_threads(), "dtype": str(unet.dtype).removeprefix("torch."),
    }  # fmt: skip


def _inputs(unet: Any, s: BenchSettings) -> tuple[tuple[Any, ...], dict[str, Any]]:
    own = unet.config.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    generator = torch.Generator().manual_seed(s.seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(unet.device, unet.dtype)

    sample = noise(s.batch, unet.config.in_channels, s.height or height, s.width or width)
    context = noise(s.batch, s.tokens, unet.config.cross_attention_dim)
    conditions = {name: noise(s.batch, size) for name, size in conditions_of(unet.config).items()}
    return (sample, s.timestep, context), unet_arguments(conditions)


def _fired(unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], inputs: Any) -> float:
    with torch.no_grad(), AblationHook(unet, edit, saes, record=True) as hook:
        unet(*inputs[0], return_dict=False, **inputs[1])
    decisions = [d.fires.float().flatten() for found in hook.decisions.values() for d in found]
    return float(torch.cat(decisions).mean())


def rounds(variants: Mapping[str, Callable[[], Any]], found: dict[str, list[float]]) -> None:
    """One more time of each variant, in seconds; who begins changes from round to round."""
    names = list(variants)
    first = len(next(iter(found.values()), [])) % max(1, len(names))
    for name in names[first:] + names[:first]:
        start = time.perf_counter()
        variants[name]()
        found.setdefault(name, []).append(time.perf_counter() - start)


def _measure(
    alone: Mapping[str, Callable[[], Any]], whole: Mapping[str, Callable[[], Any]], s: BenchSettings, say: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:  # fmt: skip
    """Seconds of the edits alone and of whole forwards, in turns, so that a slow minute of the machine meets both."""
    for call in (*alone.values(), *whole.values()):  # warm
        call()
    edits: dict[str, list[float]] = {}
    forwards: dict[str, list[float]] = {}
    for number in range(s.forwards):
        say(f"round {number + 1} of {s.forwards}")
        rounds(whole, forwards)
        for _ in range(-(-s.runs // s.forwards)):
            rounds(alone, edits)
    return edits, forwards


def working_bytes(call: Callable[[], Any]) -> int | None:
    """Largest growth of this process's resident set while `call` runs; None where the system doesn't tell (Linux does)."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before, _ = resident_bytes()
        call()
        return max(0, resident_bytes()[1] - before)
    except OSError:
        return None


def _torch_rows(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], s: BenchSettings, inputs: Any, maps: Mapping[str, torch.Tensor], progress: Progress
) -> list[Row]:  # fmt: skip
    edited = {gate: bake(unet, edit, saes, gate) for gate in s.gates}
    timestep = torch.tensor([s.timestep])
    hook = AblationHook(unet, edit, saes)
    hook._timestep = timestep
    tokens = {name: to_tokens(m) for name, m in maps.items()}

    def by_hook() -> None:
        for name, x in tokens.items():
            hook._edit_tokens(name, x, x)

    def by_module(gate: str) -> Callable[[], None]:
        modules = {name.replace("-", "."): module for name, module in edited[gate].ablations.items()}

        def call() -> None:
            for name, m in maps.items():
                modules[name](m, timestep)

        return call

    alone = {HOOK: by_hook, **{gate: by_module(gate) for gate in s.gates}}

    def forward(model: Any) -> Callable[[], None]:
        return lambda: model(*inputs[0], return_dict=False, **inputs[1])

    def hooked() -> None:
        with AblationHook(unet, edit, saes):
            forward(unet)()

    whole = {UNEDITED: forward(unet), HOOK: hooked, **{gate: forward(edited[gate]) for gate in s.gates}}
    with torch.no_grad():
        edits, forwards = _measure(alone, whole, s, lambda text: progress(f"torch: {text}"))
        memory = {name: working_bytes(call) for name, call in alone.items()}
    added = {gate: sum(t.nbytes for t in model.ablations.state_dict().values()) for gate, model in edited.items()}
    return _rows("torch", edits, forwards, memory, added)


class _Edits(torch.nn.Module):
    """The edit modules of all hookpoints, side by side, for an export of their own."""

    def __init__(self, modules: Any) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, timestep: torch.Tensor, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module(m, timestep.reshape(1)) for module, m in zip(self.inner.values(), maps, strict=True))


def _onnx_rows(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], s: BenchSettings, inputs: Any, maps: Mapping[str, torch.Tensor], progress: Progress
) -> list[Row]:  # fmt: skip
    (sample, timestep, context), more = inputs
    alone: dict[str, Callable[[], Any]] = {}
    sessions = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for gate in s.gates:
            progress(f"ONNX: exporting the edit with gate {gate}")
            modules = bake(unet, edit, saes, gate).ablations
            path = Path(folder) / gate / "model.onnx"
            path.parent.mkdir()
            ordered = [maps[name.replace("-", ".")] for name in modules]
            onnx.write_plain(_Edits(modules), (torch.tensor(timestep), *ordered), path)
            session = open_session(path)
            sessions.append(session)
            feed = {i.name: v.float().numpy() for i, v in zip(session.get_inputs(), (torch.tensor(timestep), *ordered), strict=True)}
            alone[gate] = functools.partial(run_session, session, feed)
        progress("ONNX: exporting the unedited UNet")
        onnx.write(onnx.unet_component(unet, s.tokens), Path(folder))
        session = open_session(Path(folder) / "unet" / "model.onnx")
        feed = {"sample": sample.float().numpy(), "timestep": timestep, "encoder_hidden_states": context.float().numpy()}
        feed |= {name: value.float().numpy() for name, value in (more.get("added_cond_kwargs") or {}).items()}
        whole = {UNEDITED: lambda: run_session(session, feed)}
        edits, forwards = _measure(alone, whole, s, lambda text: progress(f"ONNX: {text}"))
        memory = {name: working_bytes(call) for name, call in alone.items()}
    return _rows("onnx", edits, forwards, memory, {})


def _rows(
    backend: str, edits: Mapping[str, list[float]], forwards: Mapping[str, list[float]], memory: Mapping[str, int | None], added: Mapping[str, int]
) -> list[Row]:  # fmt: skip
    unedited = statistics.median(forwards[UNEDITED])
    rows = [Row(backend, UNEDITED, None, None, unedited, None, None)]
    for name, seconds in edits.items():
        median = statistics.median(seconds)
        whole = statistics.median(forwards[name]) if name in forwards else None
        rows.append(Row(backend, name, median, median / unedited, whole, memory[name], added.get(name)))
    return rows
