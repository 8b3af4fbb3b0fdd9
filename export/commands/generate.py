"""`saeuron generate`: pictures from an artifact, without torch, diffusers or transformers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
    from ...validation.backends.lean.begin import Begin

_MOST = 10_000
_MOST_PIXELS = 8192
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
    image: Path | None = option(None, "FILE", WHAT)
    """Begin from this picture, whose size the new ones have (img2img). UNets alone, from their ONNX graphs."""
    mask: Path | None = option(None, "FILE", WHAT)
    """With --image: draw anew only where this picture of the same size is white (inpainting)."""
    strength: float | None = option(None, "S", WHAT, above=0, most=1)
    """With --image: the share of the steps that is taken, of which each adds noise. Default: 0.6, with --mask 1."""
    steps: int | None = like(EvaluationSettings, "steps")
    guidance: float | None = like(EvaluationSettings, "guidance")
    height: int | None = like(Sampling, "height", most=_MOST_PIXELS)
    """Picture height. Default: that of the proof, else the model's."""
    width: int | None = like(Sampling, "width", most=_MOST_PIXELS)
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
        for name in ("mask", "strength") if self.image is None else ():
            if getattr(self, name) is not None:
                raise SaeuronError(f"--{name} is for a picture to begin from; give --image FILE, too")
        if self.image is not None and self.latents is not None:
            raise SaeuronError("give --image or --latents, not both: the noise that is added to a picture follows from --seed")


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

    `--image` and `--mask` do what diffusers' img2img and inpainting pipelines do with a model of text-to-image.

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
    begun = None if wanted.image is None else _read_beginning(wanted, wanted.image, steps)
    height, width, count = wanted.height, wanted.width, wanted.count
    if begun is not None:
        height, width = begun.pixels.shape[1:]
    elif noise is None:
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

        # All three speak of the graphs, so whoever gives one wants these.
        graphs = (wanted.device or wanted.provider or begun) and not target
        way = choose_networks(artifact, record, wanted.backend or ("onnx" if graphs else None), target)
        check_provider(wanted.provider, [way.backend])
        if wanted.device and way.backend != "onnx":
            raise SaeuronError(f"--device {wanted.device} is for backend onnx, not for {way.backend}")
        if begun is not None and way.backend != "onnx":
            raise SaeuronError(
                f"--image needs the graph of the autoencoder's encoder, which engines ({way.backend}) lack; give --backend onnx"
            )
        say("checking files")
        contents.check(artifact, record)
        say("opening the artifact")
        networks = open_networks(artifact, record, way.backend, wanted.device or "cpu", wanted.provider, way.target)
        _say_way(way, networks)
        pipeline = LeanPipeline(artifact, networks, wanted.scheduler)

        def latents_of(part: slice) -> np.ndarray:
            return noise[part] if noise is not None else pipeline.initial_latents([p.seed for p in pictures[part]], height, width)

        # What can't be is told before the first step, which may take minutes.
        if begun is not None:
            pipeline.check_picture(*begun.pixels.shape[1:])
        first_one = noise if noise is not None else latents_of(slice(1))
        shape = first_one.shape
        pipeline.check_latents(first_one)
        pipeline.scheduler.set_timesteps(steps, (shape[2], shape[3]))
        _warn(pipeline, texts, negative, guidance)
        made = {
            "steps": steps, "guidance": guidance, "scheduler": pipeline.scheduler.kind, "negative": negative,
            "height": shape[2] * pipeline.factor, "width": shape[3] * pipeline.factor,
            "image": wanted.image and wanted.image.name, "mask": wanted.mask and wanted.mask.name, "strength": begun and begun.strength,
            "backend": way.backend, "target": way.target, "provider": networks.provider or None, "quantised": record.quantised.scheme if record.quantised else None, "edit_sha256": record.edit.sha256, "concepts_removed": record.concepts,
        }  # fmt: skip
        with _all_or_none([p.file for p in pictures]) as partial, _one_line():
            seen = None if begun is None else pipeline.look(begun.pixels)
            for at in range(0, len(pictures), wanted.batch_size):
                part = slice(at, min(at + wanted.batch_size, len(pictures)))
                label = f"picture {at + 1}" + (f" to {part.stop}" if part.stop > at + 1 else "") + f" of {len(pictures)}"
                begin = None
                if begun is None or seen is None:
                    drawn = latents_of(part)
                else:
                    drawn, begin = pipeline.begin(seen, [p.seed for p in pictures[part]], begun.strength, begun.mask)
                arrays = _draw(pipeline, [p.prompt for p in pictures[part]], drawn, steps, guidance, negative, label, say, begin)
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


class _Begun(NamedTuple):
    """A picture to begin from."""

    pixels: np.ndarray
    """float32 `[3, H, W]`, -1 to 1"""
    mask: np.ndarray | None
    """bool `[H, W]`, true where the picture is drawn anew"""
    strength: float


def _read_beginning(wanted: _Wanted, image: Path, steps: int) -> _Begun:
    import numpy as np

    from ...validation.backends.lean.begin import left_out

    strength = wanted.strength if wanted.strength is not None else 0.6 if wanted.mask is None else 1.0
    left_out(steps, strength)
    pixels = _read_picture("--image", image, "RGB")
    for name, given, found in zip(("height", "width"), (wanted.height, wanted.width), pixels.shape, strict=False):
        if given not in (None, found):
            raise SaeuronError(
                f"--{name} {given}: --image '{image}' has {name} {found}, and so have its pictures; resize it, or leave --{name} out"
            )
    mask = None
    if wanted.mask is not None:
        mask = _read_picture("--mask", wanted.mask, "L")
        if mask.shape != pixels.shape[:2]:
            (rows, columns), (height, width) = mask.shape, pixels.shape[:2]
            raise SaeuronError(
                f"--mask '{wanted.mask}' is {columns}x{rows} pixels, --image '{image}' {width}x{height}; they must be of one size"
            )
        mask = mask >= 128
        if not mask.any():
            raise SaeuronError(f"--mask '{wanted.mask}' is nowhere white, so that nothing would be drawn")
    return _Begun(pixels.transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1, mask, strength)


def _read_picture(flag: str, path: Path, mode: str) -> np.ndarray:
    """uint8 `[H, W, 3]` of mode RGB, `[H, W]` of mode L, turned as the file says."""
    import numpy as np
    from PIL import Image, ImageOps

    if not path.is_file():
        raise SaeuronError(f"{flag} '{path}' is no file")
    try:
        with Image.open(path) as opened:
            sides = opened.size
            if max(sides) <= _MOST_PIXELS:
                return np.asarray(ImageOps.exif_transpose(opened).convert(mode))
    except Exception as error:  # Pillow's readers raise many types
        raise SaeuronError(f"{flag} '{path}' is no picture that can be read: {first_line(error, 200)}") from None
    raise SaeuronError(f"{flag} '{path}' is {sides[0]}x{sides[1]} pixels; at most {_MOST_PIXELS} a side can be drawn")


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
    pipeline: LeanPipeline, prompts: list[str], noise: np.ndarray, steps: int, guidance: float, negative: str | None, label: str, say: Any,
    begin: Begin | None,
) -> np.ndarray:  # fmt: skip
    """Pictures uint8 `[B, H, W, 3]`."""
    negatives = None if negative is None else [negative] * len(prompts)
    return pipeline.decode(
        pipeline.denoise(prompts, noise, steps, guidance, negatives, lambda done, total: say(f"{label}: step {done} of {total}"), begin)
    )


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What the runtime refuses is one line."""
    try:
        yield
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
