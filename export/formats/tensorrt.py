"""Writes TensorRT engines into an artifact, from its ONNX graphs alone: one folder a target below `tensorrt/`.

Needs neither torch nor diffusers: `saeuron build` makes engines on the device that will run them. Each engine is built in a
process of its own, see `engine_worker`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...editor.common.declared import ENGINES, Checked, option
from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, read_json
from ...editor.common.typed import read_as
from ...editor.common.writing import scratch
from ...editor.denoisers.families import Family, family_of, sizes_in
from ...validation.artifact import engines, graphs
from ...validation.artifact.engines import Target, gpu, module_name, tensorrt_module
from ...validation.artifact.manifest import Engines, Manifest, SamplingRecord
from ...validation.backends.lean.conditions import added_tokens
from ...validation.backends.lean.tokenizer import tokenizer_for

Progress = Callable[[str], None]
Range = tuple[int, int, int]
"""smallest, usual and largest size"""
_LARGEST_VOLUME = 2**31 - 1
PLACE = "saeuron-build"
_NAMES = ("batch", "height", "width")
_PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


@dataclass(frozen=True)
class Shapes:
    """Sizes that engines take, in pictures and pixels; None: the artifact's own."""

    batch: Range = (1, 1, 1)
    """pictures; where guidance is used the UNet sees twice as many"""
    height: Range | None = None
    width: Range | None = None

    @classmethod
    def parse(cls, text: str) -> Shapes:
        """`batch=1:1:4,height=512:512:768,width=512`.

        Raises:
            SaeuronError: no such text, or sizes that don't ascend.
        """
        found: dict[str, Range] = {}
        for part in (p.strip() for p in text.split(",") if p.strip()):
            name, _, tail = part.partition("=")
            if name not in _NAMES or name in found:
                raise SaeuronError(
                    f"--shapes '{text}': '{part}' is not one of {', '.join(_NAMES)}, each once, e.g. batch=1:1:4,height=512:512:768"
                )
            if not re.fullmatch(r"[0-9]{1,6}(:[0-9]{1,6}:[0-9]{1,6})?", tail):
                raise SaeuronError(f"--shapes '{text}': '{part}' is neither {name}=N nor {name}=MIN:OPT:MAX")
            sizes = [int(n) for n in tail.split(":")]
            low, usual, high = sizes if len(sizes) == 3 else sizes * 3
            if not 1 <= low <= usual <= high:
                raise SaeuronError(f"--shapes '{text}': '{part}' must ascend from at least 1")
            found[name] = (low, usual, high)
        return cls(**found)


@dataclass(frozen=True)
class EngineSettings(Checked):
    """What engines are asked for.

    Raises:
        SaeuronError: what can't be meant, before anything is written.
    """

    targets: tuple[Target, ...] = (Target("trt-rtx"),)
    shapes: Shapes = Shapes()
    optimization_level: int | None = option(None, "0-5", ENGINES, least=0, most=5)
    """0 builds quickly, 5 searches longest. Default: the library's."""
    hardware_compatible: bool = option(False, panel=ENGINES)
    """local: also for other GPUs from Ampere on; slower than an engine of their own."""
    version_compatible: bool = option(False, panel=ENGINES)
    """local: also for later minor versions of the library; larger and a little slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        folders = [t.folder for t in self.targets]
        for target in self.targets:
            if folders.count(target.folder) > 1:
                raise SaeuronError(f"target '{target}' is named twice")
            if target.backend == "trt-rtx" and (self.hardware_compatible or self.version_compatible):
                raise SaeuronError(
                    f"--hardware-compatible and --version-compatible are for --target local; '{target}' runs on the architectures that it names, in the version that built it"
                )


def ready(settings: EngineSettings, scheme: str = "") -> tuple[Target, ...]:
    """The targets with everything known: for `local`, this GPU's architecture.

    Args:
        settings: what is asked for.
        scheme: of the graph that they are built from; empty: it is in floats.

    Raises:
        SaeuronError: a library that isn't installed; `local` without a GPU; a target that can't compute in the scheme.
    """
    found = []
    for wanted in settings.targets:
        target = wanted
        if target.backend == "trt":
            try:
                device = gpu()
            except SaeuronError as error:
                raise SaeuronError(
                    f"--target local builds on the GPU that will run the engine: {error}; run `saeuron build` on that machine, or name RTX architectures, e.g. --target rtx:sm86,sm89"
                ) from None
            target = Target("trt", (device.sm,))
        tensorrt_module(target.backend)
        found.append(target)
    check_scheme(found, scheme)
    return tuple(found)


def check_precision(targets: Iterable[Target], precision: str) -> None:
    """Raise `SaeuronError` where an architecture can't compute in a precision."""
    for target in targets:
        for sm in target.sms:
            if precision not in engines.PRECISIONS.get(sm, (precision,)):
                able = " and ".join(engines.PRECISIONS[sm])
                raise SaeuronError(f"{sm} computes in {able} only, not in {precision}; export an artifact with --precision {able} for it")


def check_scheme(targets: Iterable[Target], scheme: str) -> None:
    """Raise `SaeuronError` where an architecture can't compute in a scheme of 8 bits; empty: none is asked for."""
    least = engines.SCHEMES.get(scheme, 0)
    for target in targets:
        # Without names an RTX engine is for all of them from sm80 on; a GPU of this machine is known once the library has said it.
        sms = target.sms or (("sm80",) if target.backend == "trt-rtx" else ())
        for sm in sms:
            if engines.number(sm) < least:
                which = "rtx:" + ",".join(name for name in engines.RTX_SMS if engines.number(name) >= least)
                raise SaeuronError(
                    f"target '{target}': {scheme} needs sm{least} or later, not {sm}; name others, e.g. --target {which}, or take --quantize w8"
                )


def components(family: Family) -> list[str]:
    """The networks that text-to-image needs."""
    return [*(t.name for t in family.text_encoders), "vae_decoder", family.denoiser.component]


def axes(root: Path, sampling: SamplingRecord, shapes: Shapes, component: str) -> dict[str, Range]:
    """Name of an axis in the graph → the sizes that the engine takes.

    Args:
        root: artifact folder.
        sampling: of the proof.
        shapes: in pictures and pixels.
        component: which graph.

    Raises:
        SaeuronError: pixels that the model can't take, or more values than a tensor may hold.
    """
    family = family_of(read_json(root / "model_index.json"))
    sizes = sizes_in(root)
    factor = sizes.factor
    own = sizes.latents(sampling.height, sampling.width)
    sides = []
    for name, side, given in (("height", own[0], shapes.height), ("width", own[1], shapes.width)):
        pixels = given or (side * factor,) * 3
        for value in pixels:
            sizes.check_side(value, f"--shapes: {name}")
        sides.append([value // factor for value in pixels])
    # Guidance may run the denoiser on both halves at once.
    times = family.denoiser.rows(sampling.guidance > 1) if component == family.denoiser.component else 1
    # The pictures themselves are the least that has to fit; the builder looks at every tensor.
    pictures = shapes.batch[2] * 3 * sides[0][2] * sides[1][2] * factor**2
    if pictures > _LARGEST_VOLUME:
        raise SaeuronError(
            f"too large for TensorRT: the pictures would hold {pictures:,} values, 2^31 - 1 are possible; ask for smaller --shapes"
        )
    text = family.text_encoder(component)
    tokens = text.tokens_in(root) if text else sum(t.tokens_in(root) for t in family.text_encoders if t.name in family.sequence)
    # An instruction stands before prompts, and not before negative ones.
    longest = tokens + (added_tokens(tokenizer_for(root, text), family.instruction) if text else 0)
    sizes_of_text = (tokens, longest, longest)
    low, middle, high = (
        family.denoiser.lengths(times * n, (h, w), length) for n, h, w, length in zip(shapes.batch, *sides, sizes_of_text, strict=True)
    )
    return {name: (low[name], middle[name], high[name]) for name in low}


def check_shapes(root: Path, sampling: SamplingRecord, shapes: Shapes) -> None:
    """Raise `SaeuronError` for sizes that can't be, before anything is exported.

    Args:
        root: folder of the model (or of an artifact); only its configs are read.
        sampling: of the proof.
        shapes: asked for.
    """
    for name in components(family_of(read_json(root / "model_index.json"))):
        axes(root, sampling, shapes, name)


def between(root: Path, height: int | None, width: int | None, shapes: Shapes) -> list[tuple[int, int, int]]:
    """Sizes strictly between the points of a dynamic profile, where an engine that is right at its points may be wrong.

    Args:
        root: folder of the model (or of an artifact); only its configs are read.
        height, width: of the proof, in pixels; None: the model's own.
        shapes: asked for.

    Returns:
        pictures, height and width in pixels: one size below the usual one and one above, where the profile leaves room; none for
        fixed sizes, and where nothing lies between (2 and 3 pictures, say).
    """
    sizes = sizes_in(root)
    own = [side * sizes.factor for side in sizes.latents(height, width)]
    ranges = [shapes.batch, *(given or (side,) * 3 for given, side in zip((shapes.height, shapes.width), own, strict=True))]
    units = (1, sizes.multiple, sizes.multiple)
    found = []
    for low, high in ((0, 1), (1, 2)):
        middle = tuple(_middle(points[low], points[high], unit) for points, unit in zip(ranges, units, strict=True))
        inside = [points[low] < value < points[high] for points, value in zip(ranges, middle, strict=True)]
        if any(inside):
            found.append(middle)
    return found  # type: ignore[return-value]


def _middle(low: int, high: int, unit: int) -> int:
    """A multiple of `unit` in the middle of the two, which are multiples themselves; `low` where none lies between."""
    return low + (high - low) // (2 * unit) * unit


def axes_of(root: Path, record: Manifest, shapes: Shapes) -> dict[str, dict[str, Range]]:
    """Component → the axes that its graph has, see `axes`."""
    family = family_of(read_json(root / "model_index.json"))
    found = {}
    for name, (inputs, _) in graphs.contract(root, family, record.precision).items():
        if name in components(family):
            held = {axis for _, names in inputs.values() for axis in names}
            found[name] = {axis: sizes for axis, sizes in axes(root, record.sampling, shapes, name).items() if axis in held}
    return found


def write(
    root: Path, record: Manifest, settings: EngineSettings, targets: Iterable[Target], progress: Progress = lambda text: None
) -> dict[str, Engines]:
    """Build every target's engines into `root/tensorrt/<target>/`.

    Args:
        root: the artifact's folder, with its ONNX graphs.
        record: its manifest.
        settings: what is asked for.
        targets: from `ready`.
        progress: told what is being built.

    Returns:
        folder name of each target → its entry for the manifest's `engines`.

    Raises:
        SaeuronError: a graph that TensorRT can't take, or a failed build; then no engine of any target is put in place.
    """
    # An engine that isn't on record makes the artifact one that nobody opens. So all of them are built in a hidden folder, which
    # every check passes over, and are put in place at the end.
    with scratch(root, PLACE) as partial:
        made = build_targets(root, record, settings, targets, partial, progress)
        (root / engines.FOLDER).mkdir(exist_ok=True)
        for name in made:
            shutil.rmtree(root / engines.FOLDER / name, ignore_errors=True)
            os.replace(partial / name, root / engines.FOLDER / name)
    return made


def build_targets(
    root: Path, record: Manifest, settings: EngineSettings, targets: Iterable[Target], place: Path, progress: Progress
) -> dict[str, Engines]:
    """Build every target's engines into `place/<target>/`; as `write`, which puts them into the artifact."""
    family = family_of(read_json(root / "model_index.json"))
    kinds = graphs.contract(root, family, record.precision)
    return {t.folder: _build_target(root, record, settings, t, family, kinds, place / t.folder, progress) for t in targets}


def _build_target(
    root: Path, record: Manifest, settings: EngineSettings, target: Target, family: Family, kinds: Any, place: Path, progress: Progress
) -> Engines:  # fmt: skip
    place.mkdir(parents=True)
    options = {name: getattr(settings, name) for name in ("optimization_level", "hardware_compatible", "version_compatible")}
    parts = {}
    for name in components(family):
        graph = root / name / "model.onnx"
        first = next(kind for kind, _ in kinds[name][1].values())
        job = {
            "backend": target.backend, "sms": list(target.sms), "graph": str(graph), "engine": str(place / f"{name}.engine"),
            "axes": axes(root, record.sampling, settings.shapes, name), "precision": _PRECISIONS[first], "options": options,
            "weights": len({layer.digest for layer in record.quantised.layers.values()}) if record.quantised and name == family.denoiser.component else 0,
            # tensorrt_rtx compiles for the GPU when it opens an engine, so it has no timings to keep.
            "timing_cache": str(place / "timing.cache") if target.backend == "trt" else None,
        }  # fmt: skip
        said = f"building {name} for {target}"
        progress(said)
        made = run_worker(job, functools.partial(_step, progress, said))
        parts[name] = {"precision": job["precision"], "onnx": _hashes(root, record, name), **made}
    built = {
        "backend": target.backend, "module": module_name(target.backend), "version": tensorrt_module(target.backend).__version__, "sms": list(target.sms),
        "precision": record.precision, "options": options, "components": parts, "status": engines.NOT_RUN,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return read_as(Engines, built, "the builder's answer")


def _step(progress: Progress, what: str, text: str) -> None:
    progress(f"{what}: {text}")


def _hashes(root: Path, record: Manifest, component: str) -> dict[str, str]:
    """SHA-256 of the graph and its weights: what the engine was built from."""
    files = sorted(p.relative_to(root).as_posix() for p in (root / component).glob("model.onnx*"))
    known = record.files
    return {name: known[name].sha256 if name in known else file_sha256(root / name) for name in files}


def run_worker(job: dict[str, Any], say: Progress = lambda text: None) -> dict[str, Any]:
    """Build one engine in a process of its own.

    Args:
        job: see `engine_worker.build`.
        say: told phases.

    Returns:
        what `engine_worker.build` returns.

    Raises:
        SaeuronError: the worker's error, or that it died.
    """
    # The same import path as here, also where the package isn't installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    name = Path(job["engine"]).stem
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as notes, subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.engine_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=notes,
        text=True, encoding="utf-8", env=environment,
    ) as worker:  # fmt: skip
        assert worker.stdin and worker.stdout
        try:
            json.dump(job, worker.stdin)
            worker.stdin.close()
            answer: dict[str, Any] = {}
            for line in worker.stdout:
                answer = json.loads(line)
                if "progress" in answer:
                    say(answer["progress"])
            worker.wait()
            notes.seek(0)
            said = notes.read().strip().splitlines()
        except BaseException:
            worker.kill()
            raise
    if "error" in answer:
        raise SaeuronError(f"engine of {name}: {answer['error']}")
    if "done" not in answer:
        how = "was killed (out of memory?)" if worker.returncode == -9 else f"ended with {worker.returncode}"
        raise SaeuronError(f"engine of {name}: the builder {how}{': ' + said[-1][:300] if said else ''}")
    return answer["done"]
