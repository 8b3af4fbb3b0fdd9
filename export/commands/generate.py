"""`saeuron generate`: pictures from an artifact, without torch, diffusers or transformers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.declared import HOW, WHAT, Checked, like, option
from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.seeds import LARGEST_SEED
from ...editor.common.writing import scratch, written
from ...editor.denoisers.sampling_settings import Sampling
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ..plan.folder import check_files
from . import options as o
from .console import err, escaped, print_warning, progress_line, tell, write_json
from .declared import command

if TYPE_CHECKING:
    import numpy as np

    from ...validation.backends.base import Runner
    from ...validation.backends.choose import Way
    from ...validation.backends.lean import LeanPipeline

_MOST = 10_000
_LATENTS = 2**30


@dataclass(frozen=True)
class _Picture:
    """One picture to be made."""

    prompt: str
    seed: int
    """of no meaning where the latents come from a file"""
    file: Path


@dataclass(frozen=True)
class _Wanted(Checked):
    """What to draw, and how."""

    prompt: tuple[str, ...] = option((), "TEXT", WHAT)
    """What to draw; repeatable."""
    negative: str | None = option(None, "TEXT", WHAT)
    """What not to draw; for all pictures."""
    count: int | None = option(None, "N", WHAT, least=1, most=_MOST)
    """Pictures a prompt. Default: 1."""
    seed: int | None = like(Sampling, "seed", None, panel=WHAT)
    """Of the first picture; each next takes the next one. The noise is that of torch's CPU generator. Default: 42."""
    latents: Path | None = option(None, "FILE", WHAT)
    """Instead of --seed: unit-variance noise [pictures, C, h, w], .npy or .safetensors."""
    steps: int | None = like(EvaluationSettings, "steps")
    guidance: float | None = like(EvaluationSettings, "guidance")
    height: int | None = like(Sampling, "height", most=8192)
    """Picture height. Default: that of the proof, else the model's."""
    width: int | None = like(Sampling, "width", most=8192)
    """Picture width. Default: that of the proof, else the model's."""
    scheduler: str | None = option(None, "KIND", HOW)
    """ddim or euler, with the settings of the artifact's scheduler. Default: its own, which must be one of the two or DPM-Solver++. SD3, FLUX and Sana have their own alone."""
    backend: str | None = option(None, "NAME", HOW)
    """What runs the networks: onnx, trt or trt-rtx. Default: engines that fit this GPU, else onnx."""
    device: str | None = option(None, "NAME", HOW)
    """Of the ONNX graphs: cpu or cuda. Default: cpu."""
    provider: str | None = like(EvaluationSettings, "provider")
    batch_size: int = like(Sampling, "batch_size", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt:
            raise SaeuronError("no prompt: give --prompt TEXT")
        for text in (*self.prompt, self.negative or ""):
            if not text.isprintable() and any(0xD800 <= ord(c) <= 0xDFFF for c in text):
                raise SaeuronError("a prompt holds bytes that are no text; give it in the terminal's encoding")
        if (pictures := len(self.prompt) * (self.count or 1)) > _MOST:
            raise SaeuronError(f"{pictures} pictures; one call makes at most {_MOST}")
        if (self.device or "cpu") != "cpu" and not str(self.device).startswith("cuda"):
            raise SaeuronError(f"device '{self.device}' is not known; it is cpu or cuda")
        if self.device and self.provider and (self.device == "cpu") != (self.provider == "cpu"):
            raise SaeuronError(f"--device {self.device} and --provider {self.provider} contradict each other; give one of them")
        for name in ("seed", "height", "width") if self.latents is not None else ():
            if getattr(self, name) is not None:
                raise SaeuronError(f"give --{name} or --latents, not both")


@command
def generate(
    artifact: o.Artifact,
    wanted: _Wanted,
    target: o.Target = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.png|DIR", help="Several pictures become FILE-0.png, FILE-1.png, …; in a folder 0.png, 1.png, ….", rich_help_panel=o.OUTPUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures of the same names.", rich_help_panel=o.OUTPUT)] = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Make pictures with an artifact's ONNX graphs; neither torch nor diffusers nor transformers is needed.

    File hashes are checked first. The same seed gives the picture that diffusers makes from a float32 CPU generator of that seed, apart
    from rounding. There is no safety checker.

    Example: `saeuron generate without-neon --prompt "An image of House in Sunset style." --count 4 -o house.png`
    """
    from ...validation.artifact import contents, manifest

    record = manifest.read(artifact)
    sampling = record.sampling
    wanted = replace(
        wanted, steps=wanted.steps if wanted.steps is not None else sampling.steps,
        guidance=wanted.guidance if wanted.guidance is not None else sampling.guidance,
    )  # fmt: skip
    steps, guidance, negative = wanted.steps, wanted.guidance, wanted.negative
    assert steps is not None and guidance is not None
    noise = None if wanted.latents is None else _read_latents(wanted.latents)
    height, width, count = wanted.height, wanted.width, wanted.count
    if noise is None:
        height, width = height or sampling.height, width or sampling.width
    elif count is None and len(wanted.prompt) == 1:
        count = len(noise)
    texts = [text for text in wanted.prompt for _ in range(count or 1)]
    if noise is not None and len(noise) != len(texts):
        raise SaeuronError(f"--latents '{wanted.latents}' are for {len(noise)} pictures, --prompt and --count ask for {len(texts)}")
    first = Sampling.seed if wanted.seed is None else wanted.seed
    if first + len(texts) - 1 > LARGEST_SEED:
        raise SaeuronError(f"--seed {first}: the last of {len(texts)} pictures would have one above {LARGEST_SEED}; take a smaller one")
    pictures = [_Picture(t, first + i, file) for i, (t, file) in enumerate(zip(texts, _files(output, len(texts), overwrite), strict=True))]

    with progress_line("starting") as say:
        from ...validation.backends.choose import choose_networks, open_networks
        from ...validation.backends.lean import LeanPipeline
        from ...validation.backends.sessions import check_provider

        # Both speak of the graphs, so whoever gives one wants these.
        way = choose_networks(
            artifact, record, wanted.backend or ("onnx" if (wanted.device or wanted.provider) and not target else None), target
        )
        check_provider(wanted.provider, [way.backend])
        if wanted.device and way.backend != "onnx":
            raise SaeuronError(f"--device {wanted.device} is for backend onnx, not for {way.backend}")
        say("checking files")
        contents.check(artifact, record)
        say("opening the artifact")
        networks = open_networks(artifact, record, way.backend, wanted.device or "cpu", wanted.provider, way.target)
        _say_way(way, networks)
        pipeline = LeanPipeline(artifact, networks, wanted.scheduler)

        def latents_of(part: slice) -> np.ndarray:
            return noise[part] if noise is not None else pipeline.initial_latents([p.seed for p in pictures[part]], height, width)

        # What can't be is told before the first step, which may take minutes.
        first_one = noise if noise is not None else latents_of(slice(1))
        shape = first_one.shape
        pipeline.check_latents(first_one)
        pipeline.scheduler.set_timesteps(steps, (shape[2], shape[3]))
        _warn(pipeline, texts, negative, guidance)
        made = {
            "steps": steps, "guidance": guidance, "scheduler": pipeline.scheduler.kind, "negative": negative,
            "height": shape[2] * pipeline.factor, "width": shape[3] * pipeline.factor,
            "backend": way.backend, "target": way.target, "provider": networks.provider or None, "quantised": record.quantised.scheme if record.quantised else None, "edit_sha256": record.edit.sha256, "concepts_removed": record.concepts,
        }  # fmt: skip
        with _all_or_none([p.file for p in pictures]) as partial:
            for begin in range(0, len(pictures), wanted.batch_size):
                part = slice(begin, min(begin + wanted.batch_size, len(pictures)))
                label = f"picture {begin + 1}" + (f" to {part.stop}" if part.stop > begin + 1 else "") + f" of {len(pictures)}"
                arrays = _draw(pipeline, [p.prompt for p in pictures[part]], latents_of(part), steps, guidance, negative, label, say)
                for picture, array, file in zip(pictures[part], arrays, partial[part], strict=True):
                    _save(file, array, {"prompt": picture.prompt, "seed": None if noise is not None else picture.seed, **made})
    if as_json:
        entries = [{"file": str(p.file), "prompt": p.prompt, "seed": None if noise is not None else p.seed} for p in pictures]
        write_json({"artifact": str(artifact), **made, "latents": wanted.latents and str(wanted.latents), "pictures": entries})
    else:
        for picture in pictures:
            tell(str(picture.file))


def _say_way(way: Way, networks: Runner) -> None:
    """What runs, so that nobody waits for a CPU in the belief that a GPU works."""
    passed = f" (not run: {'; '.join(way.passed_over)})" if way.passed_over else ""
    err.print(escaped(f"networks run by {networks.runs_on}{passed}"), highlight=False, soft_wrap=True)


def _warn(pipeline: LeanPipeline, texts: list[str], negative: str | None, guidance: float) -> None:
    for text in dict.fromkeys([*texts, *([negative] if negative else [])]):
        if lost := pipeline.truncated(text):
            print_warning(f"the last {lost} tokens of '{text[:40]}…' are beyond what the text encoder reads")
    if negative is not None and not pipeline.guided(guidance):
        print_warning(f"--negative does nothing with this model at guidance {guidance:g}")


def _read_latents(path: Path) -> np.ndarray:
    """A float array from `.npy`, or the only tensor of a `.safetensors` file (or the one called `latents`)."""
    import numpy as np

    from ...editor.common.files import read_header

    if not path.is_file():
        raise SaeuronError(f"--latents '{path}' is no file")
    if path.stat().st_size > _LATENTS:
        raise SaeuronError(f"--latents '{path}' is larger than 1 GiB")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        names = list(read_header(path)[1])
        name = "latents" if "latents" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise SaeuronError(f"--latents '{path}' holds {len(names)} tensors and none is called 'latents'")
        try:
            found = load_file(path)[name]
        except Exception as error:  # a type that numpy lacks
            raise SaeuronError(f"--latents '{path}': '{name}' can't be read: {first_line(error, 200)}") from None
    elif path.suffix == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
        except Exception as error:  # its header is parsed as Python's literals, which can fail in any way
            raise SaeuronError(f"--latents '{path}' is no array that can be read: {first_line(error, 200)}") from None
    else:
        raise SaeuronError(f"--latents '{path}': the file must be .npy or .safetensors")
    if found.dtype.kind != "f":
        raise SaeuronError(f"--latents '{path}' holds {found.dtype}; it must be floats")
    return found.astype(np.float32)


def _files(output: Path | None, count: int, overwrite: bool) -> list[Path]:
    """The pictures' files, none of which may be in the way."""
    if output is None:
        raise SaeuronError("no output: give --output FILE.png, or a folder")
    if output.suffix.lower() == ".png" and not output.is_dir():
        files = [output] if count == 1 else [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]
    elif output.suffix and not output.is_dir():
        raise SaeuronError(f"--output '{output}': pictures are PNG; give FILE.png, or a folder")
    else:
        o.out_folder(output)
        files = [output / f"{i}.png" for i in range(count)]
    check_files(files, overwrite)
    return files


@contextlib.contextmanager
def _all_or_none(files: list[Path]) -> Iterator[list[Path]]:
    """Files to write to instead, which are renamed to `files` if the block ends without an error, and vanish otherwise."""
    folder = files[0].absolute().parent
    # On the same disk, so that nothing but names change at the end.
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    with written(folder), scratch(existing, "saeuron-generate") as apart:
        found = [apart / str(i) for i in range(len(files))]
        yield found
        folder.mkdir(parents=True, exist_ok=True)
        for made, file in zip(found, files, strict=True):
            os.replace(made, file)


def _draw(
    pipeline: LeanPipeline, prompts: list[str], noise: np.ndarray, steps: int, guidance: float, negative: str | None, label: str, say: Any
) -> np.ndarray:
    """Pictures uint8 `[B, H, W, 3]`; what the runtime refuses is one line."""
    negatives = None if negative is None else [negative] * len(prompts)
    try:
        return pipeline.decode(
            pipeline.denoise(prompts, noise, steps, guidance, negatives, lambda done, total: say(f"{label}: step {done} of {total}"))
        )
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise SaeuronError(f"ONNX Runtime can't run the networks: {first_line(error)}") from None


def _save(path: Path, array: np.ndarray, made: dict[str, Any]) -> None:
    """Write a PNG that says how it was made: `prompt`, `seed`, and the rest with `saeuron:` before its name."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ...editor.common.typed import strict_json

    said = PngInfo()
    for key, value in made.items():
        if value is not None:
            name = key if key in ("prompt", "seed") else f"saeuron:{key}"
            said.add_text(name, value if isinstance(value, str) else strict_json(value))
    Image.fromarray(array).save(path, format="PNG", pnginfo=said)
