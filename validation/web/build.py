"""Writes the page: its files, the networks, and `page.json`, which holds every number that its script works with."""

from __future__ import annotations

import base64
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json, reading
from ...editor.common.typed import strict_json
from ...editor.denoisers.families import family_of, sizes_in
from ...editor.denoisers.sampling_settings import Sampling
from ..artifact import contents, manifest
from ..artifact.manifest import Manifest
from ..backends.lean.pipeline import scheduler_of
from ..backends.lean.tokenizer import ClipTokenizer, tokenizer_for
from ..page.render import page_css
from ..trust.tables import read_edit
from ..ui.suggestions import examples
from .numbers import steps_of, tokenizer_of
from .settings import PageSettings

MARKER = "page.json"
"""the file by which a page's folder is known"""
VERSION = "1.30.0"
"""of onnxruntime-web"""
CDN = "https://cdn.jsdelivr.net"
RUNTIME = {
    "script": ("ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    "wasm": ("ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}
"""what is loaded of it → its file, and the digest that a browser holds it against"""
_HERE = Path(__file__).parent
_SCRIPTS = ("page.js", "model.js", "noise.js", "text.js")
_PARTS = ("text_encoder", "vae_decoder", "unet")
_MOST = 2 << 30
"""bytes of graphs: WebAssembly's memory ends at 4 GiB, and ONNX Runtime holds a network twice while it opens it"""
_PICTURE = 2048
"""pixels of a side"""


class Beside(NamedTuple):
    """Another UNet to draw with."""

    folder: Path
    """of its graph"""
    name: str
    """for people"""


@dataclass(frozen=True)
class Plan:
    """A page that can be made."""

    root: Path
    record: Manifest
    settings: PageSettings
    numbers: dict[str, Any]
    """what `page.json` says, but for the files"""
    scheduler: str
    side: tuple[int, int]
    """height and width of a picture"""


def make_plan(root: Path, record: Manifest, settings: PageSettings) -> Plan:
    """Look whether an artifact can be a page; its digests are the caller's to check.

    Args:
        root: artifact folder.
        record: its manifest.
        settings: what the page holds.

    Raises:
        SaeuronError: it holds no ONNX graphs, or something that a page can't do.
    """
    manifest.check_backends(root, record, ["onnx"])
    family = family_of(read_json(root / "model_index.json"))
    if family.pipeline != "StableDiffusionPipeline":
        raise SaeuronError(f"'{root}' is a {family.pipeline}; a page draws with Stable Diffusion 1 and 2 alone")
    if record.precision != "fp32" or record.quantised is not None:
        held = record.quantised.scheme if record.quantised else record.precision
        raise SaeuronError(
            f"'{root}' is in {held}; a page takes networks in fp32 alone, since in a browser no other was tried: export one with --precision fp32"
        )
    (text,), denoiser, sizes = family.text_encoders, family.denoiser, sizes_in(root)
    inputs, _ = denoiser.axes(read_json(root / "unet" / "config.json"))
    if surplus := sorted(set(inputs) - {"sample", "timestep", "encoder_hidden_states"}):
        raise SaeuronError(f"this UNet takes '{surplus[0]}', which a page doesn't have")
    if (bytes_ := sum(record.files[f].bytes for f in record.files if _of_networks(f))) > _MOST:
        raise SaeuronError(
            f"the graphs of '{root}' take {bytes_ / 2**30:.1f} GiB; a browser's ONNX Runtime takes {_MOST >> 30} GiB at most"
        )
    tokenizer = tokenizer_for(root, text)
    assert isinstance(tokenizer, ClipTokenizer)  # of this family
    sampling, scheduler = record.sampling, scheduler_of(root, settings.scheduler)
    sides = sizes.latents(sampling.height, sampling.width)
    if max(sides) * sizes.factor > _PICTURE:
        raise SaeuronError(f"pictures of {max(sides) * sizes.factor} pixels; a page draws up to {_PICTURE}")
    steps = steps_of(scheduler, sampling.steps if settings.steps is None else settings.steps, sides)
    scaling = read_json(root / "vae" / "config.json").get("scaling_factor", family.vae.scaling)
    numbers = {
        "guidance": float(sampling.guidance if settings.guidance is None else settings.guidance), "steps": steps,
        "start": float(scheduler.init_noise_sigma), "scaling": scaling, "sides": [sizes.channels, *sides], "text": text.outputs[0],
        "tokenizer": tokenizer_of(root / text.tokenizer, tokenizer),
    }  # fmt: skip
    return Plan(root, record, settings, numbers, scheduler.kind, (sides[0] * sizes.factor, sides[1] * sizes.factor))


def given_beside(plan: Plan) -> Beside | None:
    """The UNet of --beside, where that is a folder with a graph; None: it has to be exported.

    Raises:
        SaeuronError: an artifact that was changed, or of another model.
    """
    folder = Path(str(plan.settings.beside))
    if not (folder / "unet" / "model.onnx").is_file():
        return None
    name = folder.resolve().name
    if not (folder / manifest.NAME).is_file():
        return Beside(folder / "unet", f"{name} (not checked)")
    record = manifest.read(folder)
    contents.check(folder, record)
    if record.model.network_sha256 != plan.record.model.network_sha256:
        raise SaeuronError(f"--beside '{folder}' was made from another model than '{plan.root}'; give an artifact of the same one")
    return Beside(folder / "unet", f"{name} (removed: {', '.join(record.concepts)})")


def write(plan: Plan, folder: Path, beside: Beside | None = None) -> None:
    """Write the page.

    Args:
        plan: from `make_plan`.
        folder: empty; becomes the page.
        beside: another UNet to draw with.

    Raises:
        SaeuronError: the other UNet is not of the same form, or the files of ONNX Runtime are of another version.
    """
    networks = {name: plan.root / name for name in _PARTS}
    if beside is not None:
        _check_form(beside.folder / "model.onnx", networks["unet"] / "model.onnx")
        networks["beside"] = beside.folder
    content = {
        **plan.numbers, "networks": {name: _network(source, folder, name) for name, source in networks.items()},
        "runtime": {what: _runtime(*file, folder, plan.settings.ort) for what, file in RUNTIME.items()},
    }  # fmt: skip
    (folder / MARKER).write_text(strict_json(content) + "\n", encoding="utf-8")
    for name in _SCRIPTS:
        shutil.copyfile(_HERE / name, folder / name)
    (folder / "page.css").write_text(page_css() + (_HERE / "style.css").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "index.html").write_text(_html(plan, _integrity(folder / MARKER), beside), encoding="utf-8")


def _html(plan: Plan, integrity: str, beside: Beside | None) -> str:
    record, edit = plan.record, read_edit(plan.root / "edit" / "edit.safetensors")
    proof = (
        "Not validated."
        if record.validation is None
        else "Proven equal to the dynamic hook."
        if record.validation.passed
        else "It FAILED its proof."
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((_HERE / "index.html.j2").read_text(encoding="utf-8"))
    elsewhere = "" if plan.settings.ort else f" {CDN}"
    guidance = plan.numbers["guidance"]
    return template.render(
        name=plan.root.resolve().name, concepts=record.concepts, proof=proof, integrity=integrity, seed=Sampling.seed, scheduler=plan.scheduler,
        policy=f"default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'{elsewhere}; base-uri 'none'; form-action 'none'",
        prompts=[one.prompt for one in examples(plan.root, record, edit.header)], guided=guidance > 1, guidance=f"{guidance:g}",
        steps=len(plan.numbers["steps"]), drawn=[("unet", "Edited"), *([("beside", beside.name)] if beside else [])],
        height=plan.side[0], width=plan.side[1], model=record.model.source, licence=record.license and record.license.id,
        content_sha256=manifest.content_sha256(record), edit_sha256=record.edit.sha256,
    )  # fmt: skip


def _of_networks(file: str) -> bool:
    part, _, name = file.partition("/")
    return part in _PARTS and name.startswith("model.onnx")


def _network(source: Path, folder: Path, name: str) -> dict[str, Any]:
    """Copy a graph and the weights beside it."""
    target = folder / "networks" / name
    target.mkdir(parents=True)

    def put(file: Path) -> dict[str, str]:
        copy = target / file.name
        shutil.copyfile(file, copy)
        return {"url": copy.relative_to(folder).as_posix(), "name": file.name, "integrity": _integrity(copy)}

    weights = sorted(p for p in source.glob("model.onnx*") if p.name != "model.onnx")
    return {"graph": put(source / "model.onnx"), "data": [put(file) for file in weights]}


def _runtime(name: str, integrity: str, folder: Path, ort: Path | None) -> dict[str, str]:
    """A file of onnxruntime-web: copied, or where it is loaded from."""
    if ort is None:
        return {"url": f"{CDN}/npm/onnxruntime-web@{VERSION}/dist/{name}", "integrity": integrity}
    if not (ort / name).is_file() or _integrity(ort / name, "sha384") != integrity:
        raise SaeuronError(
            f"--ort '{ort}' holds no {name} of onnxruntime-web {VERSION}; give the folder dist of that npm package (npm pack onnxruntime-web@{VERSION})"
        )
    shutil.copyfile(ort / name, folder / name)
    return {"url": name, "integrity": integrity}


def _integrity(path: Path, kind: str = "sha256") -> str:
    """A file's digest as browsers write it."""
    with path.open("rb") as file:
        return f"{kind}-{base64.b64encode(hashlib.file_digest(file, kind).digest()).decode()}"


def _check_form(path: Path, own: Path) -> None:
    """Raise `SaeuronError` unless a graph takes and gives what the artifact's does."""
    import onnx_ir as ir

    def form(file: Path) -> list[tuple[Any, ...]]:
        with reading(file, "an ONNX graph"):
            graph = ir.load(file).graph
        # An axis that may be of any size has a name of its writer's choice.
        return [(v.name, v.dtype, [d if isinstance(d, int) else None for d in v.shape or ()]) for v in (*graph.inputs, *graph.outputs)]

    if form(path) != form(own):
        raise SaeuronError(f"'{path}' takes or gives other tensors than '{own}', so the two can't be drawn side by side")
