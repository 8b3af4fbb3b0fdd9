"""What an artifact says of itself: `saeuron.json`, as types. Needs neither torch nor diffusers."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.names import Gate, Precision, Residual
from ...editor.common.typed import Number, Record, Whole, is_plain, plain, read_as, strict_json
from ...editor.edit.provenance import ActivationsUsed, SaeUsed, Setting, Steps
from .quantised import Quantisation

NAME = "saeuron.json"
GOLDEN = "edit/golden.safetensors"
FORMAT = "saeuron-artifact-1"
SIGNATURE = "model.sig"
"""at the top of an artifact, on no record: it covers the manifest too"""
OWN_HASH = "manifest_sha256"
BACKENDS = {
    "checkpoint": "{}/diffusion_pytorch_model*.safetensors", "onnx": "{}/model.onnx", "trt": "tensorrt/local-*/{}.engine",
    "trt-rtx": "tensorrt/rtx*/{}.engine",
}  # fmt: skip
"""what an artifact may hold → the files that show it, where `{}` stands for the folder of the network that is edited"""
DENOISERS = ("unet", "transformer")
"""folders of the networks that may be edited; an artifact has one of them"""

_ADDED = ("validation/", "tensorrt/")
"""folders that may be written into a finished artifact"""

Format = Literal["checkpoint", "onnx", "trt", "trt-rtx"]
Sizes = Annotated[list[list[Whole]], Meta(min_length=3, max_length=3)]
"""smallest, usual and largest shape"""


class File(Record):
    """A file of the artifact."""

    sha256: str
    bytes: Whole


def file_of(content: bytes) -> File:
    """A file with this content."""
    return File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


class Model(Record):
    """The model that was edited."""

    source: str
    pipeline: str
    network_sha256: str
    safety_checker: bool
    variant: str | None = None


class Tables(Record):
    """Size of an edit's tables at a hookpoint."""

    features: Whole
    timesteps: Whole


class Changed(Record):
    """Digests of a weight of the denoiser, as `weights.exact` takes them at the artifact's precision."""

    before: str
    after: str


class EditHashes(Record):
    """Which edit it is."""

    sha256: str
    """of the edit's file"""
    tensors_sha256: str
    """of its tensors in the checkpoint; empty for an edit in the weights alone"""
    hookpoints: dict[str, Tables] = {}
    weights: dict[str, Changed] = {}
    """name → of each weight that is edited; validation shows that no other is"""


class SamplingRecord(Record):
    """How the proof's pictures are made."""

    steps: Steps
    guidance: Number
    height: Whole | None
    width: Whole | None


class SeamNames(Record):
    """Tensors at the edge of the edit in the ONNX graph, see `seam_tensor`."""

    input: str
    output: str
    fires: str
    before: str | None = None
    members: str | None = None
    places: str | None = None


class Graphs(Record):
    """The ONNX graphs."""

    opset: Whole
    seams: dict[str, SeamNames]


class Engine(Record):
    """The engine of one component."""

    precision: Precision
    onnx: dict[str, str]
    """graph and weights that it was built from → SHA-256"""
    shapes: dict[str, Sizes]
    types: dict[str, Any]
    bytes: Whole
    seconds: Number
    peak_bytes: Whole | None


class EngineOptions(Record):
    """What the builder was told."""

    hardware_compatible: bool = False
    version_compatible: bool = False
    optimization_level: Whole | None = None


class Engines(Record):
    """Engines for one target."""

    backend: Literal["trt", "trt-rtx"]
    module: str
    """import name of the TensorRT that built them"""
    version: str
    sms: list[str]
    precision: Precision
    options: EngineOptions
    components: dict[str, Engine]
    status: str
    built: str = ""


class ProofSummary(Record):
    """What the proof came to."""

    passed: bool
    scope: str
    precision: str
    seam: dict[str, Number | str]
    forwards: dict[str, Number | str]
    failures: list[str]
    gpu: str | None = None


class Licence(Record):
    """Under which licence the base model is."""

    id: str
    """the Hub's identifier, or several with commas between"""
    source: str
    """who says so"""
    name: str | None = None
    link: str | None = None
    """name and link of an `other` one"""


class Published(Record):
    """Where it was published."""

    repo: str


class Manifest(Record, kw_only=True, forbid_unknown_fields=True):
    """All that `saeuron.json` says."""

    format: Literal["saeuron-artifact-1"]
    created: str = ""
    versions: dict[str, str | None] = {}
    concepts: list[str]
    settings: list[Setting]
    residual: Residual
    gate: Gate
    precision: Precision
    formats: list[Format]
    model: Model
    saes: dict[str, SaeUsed]
    activations: list[ActivationsUsed]
    edit: EditHashes
    sampling: SamplingRecord
    onnx: Graphs
    quantised: Quantisation | None = None
    """how the denoiser's graph was, and with it its engines; None where it is in floats"""
    device: str = "cpu"
    license: Licence | None = None
    warnings: list[str]
    validation: ProofSummary | None = None
    """not there yet while an export proves what it wrote"""
    engines: dict[str, Engines] = {}
    """folder below `tensorrt/` → its engines"""
    published: Published | None = None
    files: dict[str, File] = {}
    manifest_sha256: str = ""
    """of the rest, so that damage to the manifest itself shows; it is no signature"""


def of(**content: Any) -> Manifest:
    """A manifest of these fields, checked."""
    return read_as(Manifest, plain({"format": FORMAT, **content}), NAME)


def seam_tensor(hookpoint: str, part: str) -> str:
    """Name of a tensor at the edge of an edit in an exported graph.

    Args:
        hookpoint: where the edit sits.
        part: `input` (the block's output, as tokens `[B, L, d]`), `before` (the block's input, where the SAE reads what the block adds),
            `output` (the edited tokens), `fires` (the gate's decisions, bool `[B, L, U]`), `places` (row and column of each token,
            float32 `[1, L, 2]`, where tokens are replaced) or `members` (which latents are active, where the
            residual isn't `keep`: int64 `[B, L, k]`, or bool `[B, L, n]` with JumpReLU).
    """
    return f"saeuron/{hookpoint}/{part}"


def content_sha256(manifest: Manifest) -> str:
    """Hash of the files that proof, evaluation and attack are about: model and edit.

    Card, reports and engines are left out: they are written afterwards, and what was measured before is still of these files then. So are
    golden vectors, which may be left out when the artifact is published: a proof compares with them, and they change nothing that the model does.
    """
    return _digest({n: e for n, e in manifest.files.items() if n not in ("README.md", GOLDEN) and not n.startswith(_ADDED)})


def engines_sha256(manifest: Manifest) -> dict[str, str]:
    """Folder below `tensorrt/` → hash of its files."""
    files = {name: e for name, e in manifest.files.items() if name.startswith("tensorrt/") and name.count("/") > 1}
    folders = sorted({name.split("/")[1] for name in files})
    return {folder: _digest({n: e for n, e in files.items() if n.split("/")[1] == folder}) for folder in folders}


def _digest(files: dict[str, File]) -> str:
    said = [f"{file.sha256} {name}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(said).encode()).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """The bytes of `saeuron.json`; the manifest's own hash is made anew."""
    # As a reader will find it: a whole number in place of a float is one here, too.
    content = plain(read_as(Manifest, plain(manifest), NAME))
    del content[OWN_HASH]
    if manifest.quantised is None:  # as in artifacts that were made before there were any
        del content["quantised"]
    manifest.manifest_sha256 = hashlib.sha256(strict_json(content).encode()).hexdigest()
    return (strict_json({**content, OWN_HASH: manifest.manifest_sha256}) + "\n").encode()


def own_hash_faults(root: Path, manifest: Manifest) -> list[str]:
    """One line unless the file is byte for byte what this package writes for its content, its own hash included."""
    if (root / NAME).read_bytes() == encode(manifest):
        return []
    return [f"'{NAME}' is not the file that was written: it doesn't fit its own hash"]


def read(root: str | Path, replacing: Sequence[str] = (), formats: bool = True) -> Manifest:
    """The manifest of an artifact folder.

    Args:
        root: the folder.
        replacing: patterns of folders below `tensorrt/` that are about to be written anew. What lies there, or is said of them, is passed
            over and left out, so that damaged engines can be replaced.
        formats: whether to compare `formats` with the files that are there.

    Raises:
        SaeuronError: no artifact there, of another format, or a field that is missing or holds something else.
    """
    root = Path(root)
    if not root.is_dir():
        raise SaeuronError(f"'{root}' is no artifact: {'it is a file; give its folder' if root.exists() else 'there is no such folder'}")
    if not (root / NAME).is_file():
        raise SaeuronError(f"'{root}' is no artifact: it has no {NAME}")
    content = read_json(root / NAME)
    if content.get("format") != FORMAT:
        raise SaeuronError(f"{root / NAME}: format {content.get('format')!r} is not known; this version reads {FORMAT!r}")
    said = content.get("formats")
    manifest = read_as(Manifest, _without(content, replacing) if replacing else content, root / NAME)
    for name, engines in manifest.engines.items():
        for part in (name, *engines.components):
            # They become names of folders and files.
            if not is_plain(part):
                raise SaeuronError(f"{root / NAME}: 'engines' names {part[:60]!r}, which is no plain name")
    if not formats:
        return manifest
    held = [
        name for name, pattern in BACKENDS.items()
        if any(not replaced(p.relative_to(root).as_posix(), replacing) for part in DENOISERS for p in root.glob(pattern.format(part)))
    ]  # fmt: skip
    if replacing:
        manifest.formats = [name for name in manifest.formats if name in held or not BACKENDS[name].startswith("tensorrt/")]
    if not held or sorted(manifest.formats) != held:
        raise SaeuronError(f"{root / NAME} says formats {said}, the folder holds {held}; take the artifact again from its source")
    return manifest


def said_engines(root: Path) -> list[str]:
    """Folders below `tensorrt/` that the manifest speaks of, whatever it says."""
    said = read_json(root / NAME)
    files = said.get("files")
    names = {
        file.split("/")[1] for file in (files if isinstance(files, dict) else ()) if file.startswith("tensorrt/") and file.count("/") > 1
    }
    return sorted({*names, *(said["engines"] if isinstance(said.get("engines"), dict) else ())})


def replaced(file: str, patterns: Sequence[str]) -> bool:
    """Whether a file lies in a folder below `tensorrt/` of such a name."""
    parts = file.split("/")
    return len(parts) > 2 and parts[0] == "tensorrt" and any(fnmatch.fnmatchcase(parts[1], p) for p in patterns)


def _without(content: dict[str, Any], replacing: Sequence[str]) -> dict[str, Any]:
    """The same without what is said of some folders below `tensorrt/`."""
    found = dict(content)
    for key, below in (("engines", "tensorrt/{}/x"), ("files", "{}")):
        if isinstance(found.get(key), dict):
            found[key] = {name: entry for name, entry in found[key].items() if not replaced(below.format(name), replacing)}
    # A record of engines that can't be read goes with the last of them.
    if "engines" in found and not isinstance(found["engines"], dict) and "*" in replacing:
        del found["engines"]
    return found


def check_backends(root: str | Path, manifest: Manifest, backends: Sequence[str]) -> None:
    """Raise `SaeuronError` unless every backend is known and in the artifact."""
    for name in backends:
        if name not in BACKENDS:
            raise SaeuronError(f"backend '{name}' is not known; it is one of {', '.join(BACKENDS)}")
        if name not in manifest.formats:
            raise SaeuronError(f"'{root}' holds no '{name}' (formats: {', '.join(manifest.formats)})")
