"""Times the edit beside the UNet that carries it: what each gate costs, as a share of the unedited UNet's forward.

A percent of a forward that takes many seconds drowns in a machine's noise. So the edit is timed alone, on the map that the
unedited UNet gives at its hookpoint, and so is the UNet, in rounds that take turns; their medians make the ratio. Whole
forwards of each variant stand beside it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...editor.common.writing import temporary
from ...editor.denoisers.conditions import conditions_of, text_width, unet_arguments
from ...editor.denoisers.hookpoints import to_tokens
from ...editor.denoisers.sampling import observe
from ...editor.denoisers.sizes import latent_sides
from ...editor.edit.bake import bake
from ...editor.edit.edit import Edit
from ...editor.edit.hook import AblationHook
from ...editor.sae.sae import SparseAutoencoder
from ...validation.artifact.engines import BACKENDS as ENGINES
from ..formats.engine_worker import resident_bytes
from . import graphs as bench_graphs

Progress = Callable[[str], None]
HOOK, UNEDITED = "hook", "unedited"


@dataclass(frozen=True)
class BenchSettings:
    """What is measured."""

    gates: tuple[str, ...]
    backends: tuple[str, ...]
    """`torch`, `onnx`, `trt`, `trt-rtx`"""
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
    device: str = "cpu"
    """of torch"""
    provider: str = "CPUExecutionProvider"
    """of ONNX Runtime"""


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
    """memory that the edit alone takes while it runs, of torch's device or of the process; None where nobody tells"""
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
        `{"rows": [Row as a dict, …], "fired": share of decisions that fire on the input, "settings", "unet_parameters", "hardware"}`.
    """
    inputs = _inputs(unet, settings)
    maps: dict[str, torch.Tensor] = {}
    with torch.no_grad(), observe(unet, dict.fromkeys(edit.hookpoints, "output"), lambda timestep, found: maps.update(found)):
        unet(*inputs[0], return_dict=False, **inputs[1])
    rows: list[Row] = []
    fired = _fired(unet, edit, saes, inputs)
    if "torch" in settings.backends:
        rows += _torch_rows(unet, edit, saes, settings, maps, progress)
    if set(settings.backends) - {"torch"}:
        rows += _graph_rows(unet, edit, saes, settings, inputs, maps, progress)
    return {
        "rows": [vars(r) for r in rows], "fired": fired, "settings": vars(settings), "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "maps": {h: list(m.shape) for h, m in maps.items()}, "threads": torch.get_num_threads(), "dtype": str(unet.dtype).removeprefix("torch."),
        "hardware": hardware(settings),
    }  # fmt: skip


def hardware(s: BenchSettings) -> dict[str, str]:
    """Backend → what ran it."""
    threads = f"CPU, {torch.get_num_threads()} threads"
    found = {name: threads for name in s.backends if name in ("torch", "onnx")}
    if "torch" in found and s.device.startswith("cuda"):
        found["torch"] = torch.cuda.get_device_name(s.device)
    if "onnx" in found and s.provider != "CPUExecutionProvider":
        found["onnx"] = s.provider
    if set(s.backends) & set(ENGINES):
        from ...validation.artifact.engines import gpu

        found |= {name: gpu().name for name in s.backends if name in ENGINES}
    return found


def _inputs(unet: Any, s: BenchSettings) -> tuple[tuple[Any, ...], dict[str, Any]]:
    height, width = latent_sides(unet.config.sample_size, 1, s.height, s.width)
    generator = torch.Generator().manual_seed(s.seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(unet.dtype)

    sample = noise(s.batch, unet.config.in_channels, height, width)
    context = noise(s.batch, s.tokens, text_width(unet.config))
    conditions = {name: noise(s.batch, size) for name, size in conditions_of(unet.config).items()}
    return (sample, s.timestep, context), unet_arguments(conditions)


def _fired(unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], inputs: Any) -> float:
    with torch.no_grad(), AblationHook(unet, edit, saes, record=True) as hook:
        unet(*inputs[0], return_dict=False, **inputs[1])
    decisions = [d.fires.float().flatten() for found in hook.decisions.values() for d in found]
    return float(torch.cat(decisions).mean())


def rounds(variants: Mapping[str, Callable[[], Any]], found: dict[str, list[float]], finish: Callable[[], None] = lambda: None) -> None:
    """One more time of each variant, in seconds; who begins changes from round to round.

    Args:
        variants: name → what is timed.
        found: name → times so far.
        finish: waits until a device has done what it was given.
    """
    names = list(variants)
    first = len(next(iter(found.values()), [])) % max(1, len(names))
    for name in names[first:] + names[:first]:
        finish()
        start = time.perf_counter()
        variants[name]()
        finish()
        found.setdefault(name, []).append(time.perf_counter() - start)


def _measure(
    alone: Mapping[str, Callable[[], Any]], whole: Mapping[str, Callable[[], Any]], s: BenchSettings, say: Progress,
    finish: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:  # fmt: skip
    """Seconds of the edits alone and of whole forwards, in turns, so that a slow minute of the machine meets both."""
    for _ in range(2):  # warm; an engine's second run records its CUDA graph
        for call in (*alone.values(), *whole.values()):
            call()
    edits: dict[str, list[float]] = {}
    forwards: dict[str, list[float]] = {}
    for number in range(s.forwards):
        say(f"round {number + 1} of {s.forwards}")
        rounds(whole, forwards, finish)
        for _ in range(-(-s.runs // s.forwards)):
            rounds(alone, edits, finish)
    return edits, forwards


def working_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Largest growth of memory while `call` runs: torch's on a GPU, else this process's resident set; None where the system doesn't tell (Linux does)."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before, _ = resident_bytes()
        call()
        return max(0, resident_bytes()[1] - before)
    except OSError:
        return None


def _torch_rows(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], s: BenchSettings, maps: Mapping[str, torch.Tensor], progress: Progress
) -> list[Row]:  # fmt: skip
    edited = {gate: bake(unet, edit, saes, gate).to(s.device) for gate in s.gates}
    unet.to(s.device)
    inputs, more = _inputs(unet, s)
    inputs = tuple(v.to(s.device) if torch.is_tensor(v) else v for v in inputs)
    more = unet_arguments({name: value.to(s.device) for name, value in (more.get("added_cond_kwargs") or {}).items()})
    timestep = torch.tensor([s.timestep], device=s.device)
    hook = AblationHook(unet, edit, saes)
    hook.timestep = timestep
    here = {name: m.to(s.device) for name, m in maps.items()}
    tokens = {name: to_tokens(m) for name, m in here.items()}

    def by_hook() -> None:
        for name, x in tokens.items():
            hook.edit_tokens(name, x, x)

    def by_module(gate: str) -> Callable[[], None]:
        modules: dict[str, Any] = {name.replace("-", "."): module for name, module in edited[gate].ablations.items()}

        def call() -> None:
            for name, m in here.items():
                modules[name].on_map(m, timestep)

        return call

    alone = {HOOK: by_hook, **{gate: by_module(gate) for gate in s.gates}}

    def forward(model: Any) -> Callable[[], None]:
        return lambda: model(*inputs, return_dict=False, **more)

    def hooked() -> None:
        with hook:  # made once: its SAEs already lie on the device
            forward(unet)()
        hook.timestep = timestep

    def finish() -> None:
        if s.device.startswith("cuda"):
            torch.cuda.synchronize(s.device)

    whole = {UNEDITED: forward(unet), HOOK: hooked, **{gate: forward(edited[gate]) for gate in s.gates}}
    with torch.no_grad():
        edits, forwards = _measure(alone, whole, s, lambda text: progress(f"torch: {text}"), finish)
        memory = {name: working_bytes(call, s.device) for name, call in alone.items()}
    added = {gate: sum(t.nbytes for t in model.ablations.state_dict().values()) for gate, model in edited.items()}
    unet.to("cpu")
    return _rows("torch", edits, forwards, memory, added)


def _graph_rows(
    unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], s: BenchSettings, inputs: Any, maps: Mapping[str, torch.Tensor], progress: Progress
) -> list[Row]:  # fmt: skip
    """The same graphs by every backend that runs graphs, or engines of them."""
    (sample, timestep, context), more = inputs
    time_of = torch.tensor(timestep, dtype=torch.float32)
    feed = {"sample": sample, "timestep": time_of, "encoder_hidden_states": context, **(more.get("added_cond_kwargs") or {})}
    rows: list[Row] = []
    with temporary() as folder, torch.no_grad():
        paths, feeds = {}, {}
        for gate in s.gates:
            progress(f"exporting the edit with gate {gate}")
            paths[gate], feeds[gate] = bench_graphs.export_edit(bake(unet, edit, saes, gate).ablations, maps, time_of, folder / gate)
        progress("exporting the unedited UNet")
        paths[UNEDITED], feeds[UNEDITED] = bench_graphs.export_unet(unet, s.tokens, feed, folder)
        for backend in (b for b in s.backends if b != "torch"):
            with ExitStack() as opened:
                calls = {}
                for name, path in paths.items():
                    progress(f"{backend}: opening {name}")
                    calls[name] = bench_graphs.opener(backend, s.provider)(path, feeds[name], opened)
                whole = {UNEDITED: calls.pop(UNEDITED)}
                edits, forwards = _measure(calls, whole, s, lambda text, by=backend: progress(f"{by}: {text}"))  # type: ignore[misc]
                by_process = backend == "onnx" and s.provider == "CPUExecutionProvider"
                memory = {name: working_bytes(call) if by_process else None for name, call in calls.items()}
            rows += _rows(backend, edits, forwards, memory, {})
    return rows


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
