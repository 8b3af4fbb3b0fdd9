"""Every reader of files that somebody else may have written, each with valid small files and a call that takes the content apart."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import made_up

from saeuron.editor import demo
from saeuron.editor.common.files import open_safetensors, read_header, read_json
from saeuron.editor.denoisers.families import family_of
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.weights import WeightEdit
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule
from saeuron.editor.sae.formats.config import SaeConfig, SaeFile
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.validation.artifact import contents

from . import mutations as m

HOOKPOINT = "up_blocks.1.attentions.1"
_WIDTH, _LATENTS = 8, 32


@dataclass
class Reader:
    """One reader."""

    name: str
    files: dict[str, m.Mutation]
    """files that are damaged, by their path in the folder → how"""
    prepare: Callable[[Path], None]
    """writes the valid files"""
    read: Callable[[Path], Any]
    share: float = 1.0
    """of the inputs, relative to the others: slow readers get fewer"""
    held: dict[str, bytes] = field(default_factory=dict)


_READERS: list[Reader] = []


def reader(prepare: Callable[[Path], None], files: dict[str, m.Mutation], share: float = 1.0) -> Callable[[Callable[[Path], Any]], Any]:
    """Register a reader by its function."""

    def add(read: Callable[[Path], Any]) -> Any:
        _READERS.append(Reader(read.__name__.removeprefix("_").replace("_", " "), files, prepare, read, share))
        return read

    return add


def readers() -> list[Reader]:
    """All of them."""
    from . import evidence_readers, transformer_readers  # noqa: F401 - they register their own

    return _READERS


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(_LATENTS, _WIDTH, generator=generator), dim=1)
    return {"W_enc": rows, "b_enc": torch.zeros(_LATENTS), "W_dec": rows.clone(), "b_dec": torch.zeros(_WIDTH)}


def _sae() -> SparseAutoencoder:
    return SparseAutoencoder.from_file(SaeFile(SaeConfig(_WIDTH, _LATENTS, 4), _tensors(), "fuzz"))


def _activations() -> ConceptActivations:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(3, 4, _LATENTS, generator=generator)
    return ConceptActivations(
        ["A", "B", "C"],
        [2, 3, 4],
        means,
        torch.tensor([751, 501, 251, 1]),
        torch.full((4,), 0.5),
        {"hookpoint": HOOKPOINT, "prompts": {"A": ["x"]}},
    )


def _edit() -> Edit:
    wish = Suppression("A", HOOKPOINT, Rule.parse("count:3"), -2.0)
    record = {
        "saes": {HOOKPOINT: {"source": "demo", "sha256": "0", "latents": 64, "k": 4}},
        "prompts": ["a"],
        "sampling": {"steps": 4, "guidance": 3.0},
        "model": "demo",
        "concepts": [{"name": "A", "hookpoint": HOOKPOINT, "select": "count:3", "multiplier": -2.0, "status": "untuned"}],
        "activations": [],
        "network_sha256": "0",
    }
    return make_edit([wish], {("A", HOOKPOINT): _activations()}, provenance=record)


def _golden(path: Path) -> None:
    from saeuron.validation.artifact.golden import Case, Golden, Notes, Run
    from saeuron.validation.artifact.weights import Digest

    a = np.zeros((1, 2, 2, 2), np.float32)
    fires = {HOOKPOINT: np.zeros((1, 4, 3), bool)}
    cases = [Case("step", 1.0, {"sample": a, "timestep": np.array(1, np.float32)}, a + 2, a + 3, a, fires, fires)]
    runs = [Run(["a"], 3.0, 4, a, a, a + 1, a, np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 4, 4, 3), np.uint8), 0.1, 0.1, [42])]
    Golden(
        "fp32", cases, runs, {"text_encoder": {"input_ids": np.zeros((1, 3), np.int64)}}, Notes("full", ["a"], 4),
        {"ids": np.zeros((1, 3))}, {"unet": {"w": Digest("0", "1:0")}},
    ).save(path)  # fmt: skip


@reader(lambda f: _put(f, "x.json", json.dumps({"a": {"b": [1, 2.5, "x", None]}, "c": True})), {"x.json": m.as_json})
def _json(folder: Path) -> None:
    read_json(folder / "x.json")


def _put(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _some_tensors(folder: Path) -> None:
    from safetensors.torch import save_file

    kinds = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4, dtype=torch.int64),
        "c": torch.zeros(2, dtype=torch.bfloat16),
        "d": torch.zeros(3, dtype=torch.uint8),
    }
    save_file(kinds, folder / "x.safetensors", metadata={"format": "pt"})


@reader(_some_tensors, {"x.safetensors": m.as_safetensors})
def _safetensors(folder: Path) -> None:
    read_header(folder / "x.safetensors")
    open_safetensors(folder / "x.safetensors", {"a": (2, 3)})
    open_safetensors(folder / "x.safetensors")


def _some_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2).half()}
    save_file(weights, folder / "x.safetensors")
    torch.save(weights, folder / "x.pt")


@reader(_some_weights, {"x.safetensors": m.as_safetensors, "x.pt": m.as_torch_zip})
def _weights_over_a_base(folder: Path) -> None:
    from saeuron.editor.denoisers.weights_file import put_over

    for name in ("x.safetensors", "x.pt"):
        put_over(torch.nn.Linear(3, 2), folder / name, "a base")


def _read_sae(folder: Path) -> None:
    sae = SparseAutoencoder.load(folder)
    sae.sha256()
    sae(torch.ones(1, sae.config.d_in))


@reader(lambda f: _sae().save(f), {"cfg.json": m.as_json, "sae.safetensors": m.as_safetensors})
def _sae_of_saeuron(folder: Path) -> None:
    _read_sae(folder)


def _saelens(folder: Path) -> None:
    from safetensors.torch import save_file

    t = _tensors()
    config = {
        "architecture": "topk",
        "d_in": _WIDTH,
        "d_sae": _LATENTS,
        "k": 4,
        "normalize_activations": "none",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": True,
        "dtype": "float32",
    }
    _put(folder, "cfg.json", json.dumps(config))
    save_file({**t, "W_enc": t["W_enc"].T.contiguous()}, folder / "sae_weights.safetensors")


@reader(_saelens, {"cfg.json": m.as_json, "sae_weights.safetensors": m.as_safetensors})
def _sae_of_saelens(folder: Path) -> None:
    _read_sae(folder)


def _unbox(folder: Path) -> None:
    t = _tensors()
    _put(folder, "config.json", json.dumps({"d_model": _WIDTH, "n_dirs_local": _LATENTS, "k": 4}))
    torch.save(
        {"encoder.weight": t["W_enc"], "latent_bias": t["b_enc"], "decoder.weight": t["W_dec"].T.contiguous(), "pre_bias": t["b_dec"]},
        folder / "state_dict.pth",
    )


@reader(_unbox, {"config.json": m.as_json, "state_dict.pth": m.as_torch_zip})
def _sae_of_sdxl_unbox(folder: Path) -> None:
    _read_sae(folder)


def _finebooru(folder: Path) -> None:
    from safetensors.torch import save_file

    t = _tensors()
    _put(folder, "config.json", json.dumps({"features": _WIDTH, "pages": _LATENTS, "k": 4, "sample": None}))
    ours = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T.contiguous(), "bias": t["b_dec"]}
    save_file(ours, folder / "model.safetensors")


@reader(_finebooru, {"config.json": m.as_json, "model.safetensors": m.as_safetensors})
def _sae_of_finebooru(folder: Path) -> None:
    _read_sae(folder)


def _timesteps(steps: int) -> torch.Tensor:
    from saeuron.editor.features.activations import ddim_timesteps

    return ddim_timesteps({"num_train_timesteps": 1000}, steps)


@reader(lambda f: _activations().save(f / "a.safetensors"), {"a.safetensors": m.as_safetensors})
def _activations_file(folder: Path) -> None:
    ConceptActivations.load(folder / "a.safetensors")


@reader(lambda f: _put(f, "a.pkl", pickle.dumps({c: torch.rand(2, 3, 16).half() for c in "AB"})), {"a.pkl": m.as_pickle})
def _activations_pickle(folder: Path) -> None:
    ConceptActivations.load(folder / "a.pkl", _timesteps)


@reader(lambda f: torch.save({c: torch.rand(2, 3, 16).half() for c in "AB"}, f / "a.pth"), {"a.pth": m.as_torch_zip}, 2)
def _activations_zip(folder: Path) -> None:
    ConceptActivations.load(folder / "a.pth", _timesteps)


_SETTINGS = """[export]
model = "demo"
hookpoint = "up_blocks.1.attentions.1"
residual = "keep"
steps = 20
guidance = 3.0

[[concepts]]
name = "Neon"
intervention = "multiply"
select = "count:3"
multiplier = -2.0
status = "tuned"
sae = "demo:saes"
activations = "demo:style-{hookpoint}.safetensors"
prompts = ["a {title}", "b"]
test_prompts = ["c {title}"]

[[contrast]]
name = "plain"
domain = "style"
prompts = ["d"]
test_prompts = ["e"]
"""


@reader(lambda f: _put(f, "s.toml", _SETTINGS), {"s.toml": m.as_toml}, 0.3)
def _settings_file(folder: Path) -> None:
    from saeuron.export.plan.resolve import resolve
    from saeuron.export.plan.settings import Settings

    resolve(Settings((), folder / "out", settings=folder / "s.toml"))


_PRESETS = """[defaults]
model = "a/b"
domain = "style"
sae = "c/d"
hookpoint = "up_blocks.1.attentions.1"
select = "count:3"
multiplier = -2.0
steps = 20
collect_guidance = 9

[[concepts]]
name = "X_1"
kind = "object"
prompts = ["a {title}", "b {name}"]
test_prompts = ["d {name}"]

[[contrast]]
name = "plain"
domain = "style"
prompts = ["c"]
test_prompts = ["e"]
"""


@reader(lambda f: _put(f, "p.toml", _PRESETS), {"p.toml": m.as_toml})
def _preset_file(folder: Path) -> None:
    from saeuron.editor.features.concepts import load_presets

    load_presets(folder / "p.toml")


def _concepts_file(folder: Path) -> None:
    from saeuron.editor.features.concepts import presets
    from saeuron.editor.features.prompt_sets import prompts_of
    from saeuron.validation.artifact.concepts import write_concepts

    (folder / "edit").mkdir()
    write_concepts(folder, {"Neon": prompts_of(presets()["Neon"])})


@reader(_concepts_file, {"edit/concepts.json": m.as_json})
def _prompts_of_an_artifact(folder: Path) -> None:
    from saeuron.validation.artifact.concepts import read_concepts

    read_concepts(folder)


@reader(
    lambda f: (_put(f, "p.toml", '[prompts]\nA = ["a", "b"]\nB = ["c"]\n'), _put(f, "q.txt", "a\nb\n\nc, d\n"))[0],
    {"p.toml": m.as_toml, "q.txt": m.as_lines},
)
def _prompt_sets(folder: Path) -> None:
    from saeuron.editor.features.prompt_sets import check_sets, own_prompts

    check_sets(own_prompts([str(folder / "p.toml"), f"C={folder / 'q.txt'}"]))


def _artifact(folder: Path) -> None:
    """An artifact in form: the demo's configs, an edit, golden vectors, files in the place of graphs and engines."""
    from saeuron.validation.artifact import contents

    source = demo.resolve("demo")
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"):
        _put(folder, name, (source / name).read_bytes())
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    unet = json.loads((folder / "unet/config.json").read_text()) | {
        "ablation": {"residual": "keep", "gate": "exact", "sha256": "1", "hookpoints": {HOOKPOINT: {}}}
    }
    _put(folder, "unet/config.json", json.dumps(unet))
    (folder / "edit").mkdir()
    edit = _edit()
    edit.save(folder / "edit/edit.safetensors")
    _golden(folder / "edit/golden.safetensors")
    for name in ("unet/model.onnx", "vae_decoder/model.onnx", "text_encoder/model.onnx", "tensorrt/rtx-sm86/unet.engine"):
        _put(folder, name, b"x")
    report = {
        "passed": True, "scope": "full", "precision": "fp32", "failures": [], "not_checked": [], "record": {"passed": True, "failures": []},
        "backends": {"onnx": {"passed": True, "failures": [], "forwards": {"passed": True, "forwards": 1, "fired": 1, "silent": 0, "pooled": 0.001, "allowed": 0.01, "held": 1, "share": 1.0, "worst": 0.001, "rows": [{"kind": "step", "timestep": 1.0, "batch": 1, "height": 4, "width": 4, "effect": 1.0, "distance": 0.001, "ratio": 0.001, "drift": 0.0, "hook_drift": 0.0, "turned": 0}]},
                              "seam": {"passed": True, "own_tokens": None, "golden_tokens": {"passed": True, "where": "", "share": 1.0, "close": 0, "tied": 0, "rounding": 0, "worst": 0.001, "bar": 0.01, "tokens": 2, "decisions": 3, "fired": 1, "turned": 0, "wrong": 0, "features": 3, "features_fired": 2, "features_measured": 2, "furthest": 0.01}}, "components": {"passed": True, "relative": {"vae_decoder": 0.0}, "bar": 0.01},
                              "runs": {"passed": True, "loop": "lean", "rows": [{"prompts": ["a"], "steps": 4, "drift": 0.0, "hook_drift": 0.0, "allowed": 0.1, "decoder_psnr": 50.0, "psnr_unedited": 20.0, "conclusive": True, "latents": 0.001, "effect": 0.5, "psnr": "inf", "guidance": 3.0, "width": 32, "height": 32}]}}},
        "control": {"passed": True, "residual_alone": 0.0, "runs": 1, "seams": 1, "seams_caught": 1, "forwards": 1, "forwards_caught": 1, "runs_judged": 1, "runs_caught": 1}, "surroundings": {"passed": True, "failures": []},
    }  # fmt: skip
    _put(folder, "validation/report.json", json.dumps(report))
    graphs = {name: {f"{name}/model.onnx": "0"} for name in ("unet",)}
    contents.write(folder, made_up.as_manifest({
        "concepts": ["A"], "settings": [{"name": "A", "hookpoint": HOOKPOINT, "select": "count:3", "multiplier": -2.0, "status": "untuned"}], "residual": "keep", "gate": "exact", "precision": "fp32",
        "formats": ["onnx", "trt-rtx"], "device": "cpu", "model": {"source": "demo", "pipeline": "StableDiffusionPipeline", "network_sha256": "0", "safety_checker": False},
        "saes": {HOOKPOINT: {"source": "demo", "sha256": "0", "latents": 64, "k": 4}}, "activations": [], "edit": {"sha256": edit.sha256(), "tensors_sha256": "1"},
        "sampling": {"steps": 4, "guidance": 3.0, "height": None, "width": None}, "onnx": {"opset": 20, "seams": {HOOKPOINT: {"input": "x", "output": "y", "fires": "z"}}}, "warnings": [], "versions": {},
        "validation": {"passed": True, "scope": "full", "precision": "fp32", "seam": {"onnx": 0.001}, "forwards": {"onnx": 0.001}, "failures": []},
        "engines": {"rtx-sm86": {"backend": "trt-rtx", "module": "tensorrt_rtx", "version": "1.7", "sms": ["sm86"], "precision": "fp32", "options": {"hardware_compatible": False},
                                 "components": {"unet": {"precision": "fp32", "onnx": graphs["unet"], "shapes": {"sample": [[1], [2], [3]]}, "types": {}, "bytes": 1, "seconds": 1.0, "peak_bytes": None}},
                                 "status": "built, not yet run on a GPU", "built": "2026"}},
    }))  # fmt: skip


@reader(_artifact, {"saeuron.json": m.as_json}, 3)
def _manifest(folder: Path) -> None:
    from saeuron.export.ship.card import model_card
    from saeuron.validation.artifact import engines, manifest

    manifest.said_engines(folder)
    record = manifest.read(folder)
    manifest.read(folder, replacing=("rtx*",))
    manifest.check_backends(folder, record, ("onnx",))
    engines.check_target(record, None)
    engines.check_entries(folder, record)
    for entry in record.engines.values():
        engines.runs_on(entry, engines.Gpu("x", "sm86"), "1.7")
    model_card(record)
    contents.check(folder, record)


def _of_all_kinds(folder: Path) -> None:
    """With weights, and directions at another block."""
    edit, other = _edit(), "down_blocks.0.attentions.0"
    means = ConceptActivations(["A", "B"], [1, 1], torch.rand(2, 4, 2 * _WIDTH), torch.tensor([751, 501, 251, 1]))
    directed = make_edit([Suppression("A", other, Rule.parse("count:1"), -2.0, "project")], {("A", other): means})
    edit.hookpoints |= directed.hookpoints
    edit.directions, edit.weights = directed.directions, WeightEdit(torch.eye(5), {"A": "B"}, ("C",))
    edit.save(folder / "e.safetensors")


@reader(_of_all_kinds, {"e.safetensors": m.as_safetensors}, 2)
def _edit_file(folder: Path) -> None:
    from saeuron.editor.edit.edit_header import read_edit_header
    from saeuron.validation.trust.tables import read_edit

    header = read_edit_header(folder / "e.safetensors")
    assert isinstance(header.concepts, list)
    for name in header.latents:
        header.sae(name)
    _ = header.model
    edit = Edit.load(folder / "e.safetensors")
    assert edit.sha256() == read_edit(folder / "e.safetensors").sha256()
    edit.sha256(), edit.neutral(), edit.only(edit.concepts[:1]), edit.shared(edit.concepts[:1])
    for part in edit.hookpoints.values():
        part.rows(torch.tensor([1.0]))


def _probed(folder: Path) -> None:
    """Rows of probe, in an edit and alone."""
    from saeuron.editor.edit.directions_file import load_directions, save_directions
    from saeuron.editor.edit.provenance import Provenance, Setting

    held = ConceptActivations(
        ["A", "B"], [1, 1], torch.rand(2, 4, 2 * _WIDTH), torch.tensor([751, 501, 251, 1]), within=torch.eye(_WIDTH).repeat(2, 1, 1)
    )
    said = Provenance(concepts=[Setting("A", HOOKPOINT, "", -2.0, "untuned", "probe")], model_sha256="0" * 64)
    edit = make_edit([Suppression("A", HOOKPOINT, Rule.parse("count:1"), -2.0, "probe")], {("A", HOOKPOINT): held}, provenance=said)
    edit.save(folder / "e.safetensors")
    save_directions(folder / "l.safetensors", "A", "0" * 64, load_directions(folder / "e.safetensors", "A"))


@reader(_probed, {"e.safetensors": m.as_safetensors, "l.safetensors": m.as_safetensors}, 1)
def _directions(folder: Path) -> None:
    from saeuron.editor.edit.directions_file import load_directions

    for name in ("e", "l"):
        for held in load_directions(folder / f"{name}.safetensors", "A").values():
            assert all(
                rows.encoder.shape == rows.decoder.shape == (len(held.timesteps), _WIDTH) or rows.encoder.ndim == 2 for rows in held.rows
            )


@reader(lambda f: _golden(f / "g.safetensors"), {"g.safetensors": m.as_safetensors}, 2)
def _golden_file(folder: Path) -> None:
    from saeuron.validation.artifact.golden import Golden, read_pictures

    for shown in read_pictures(folder / "g.safetensors"):
        assert len(shown.prompts) == len(shown.hook_pictures)
    Golden.load(folder / "g.safetensors")


_OF_ARTIFACT: dict[str, m.Mutation] = {
    "model_index.json": m.as_json, "unet/config.json": m.as_json, "vae/config.json": m.as_json, "text_encoder/config.json": m.as_json,
    "scheduler/scheduler_config.json": m.as_json,
}  # fmt: skip


@reader(_artifact, {"unet/config.json": m.as_json, "edit/edit.safetensors": m.as_safetensors}, 1)
def _what_files_say_of_one_another(folder: Path) -> None:
    from saeuron.validation.artifact import manifest
    from saeuron.validation.artifact.golden import Golden
    from saeuron.validation.trust.agreement import check_said

    check_said(folder, manifest.read(folder), Golden.load(folder / "edit/golden.safetensors"))


@reader(_artifact, _OF_ARTIFACT, 1)
def _configs(folder: Path) -> None:
    from saeuron.export.formats.tensorrt import Shapes, axes_of
    from saeuron.validation.artifact import manifest
    from saeuron.validation.trust.configs import compare_configs

    source = demo.resolve("demo")
    reference = {
        n: json.loads((source / f).read_text()) | {"class": "x"}
        for n, f in (("unet", "unet/config.json"), ("vae", "vae/config.json"), ("scheduler", "scheduler/scheduler_config.json"))
    }
    family_of(read_json(folder / "model_index.json"))
    compare_configs(folder, reference)
    axes_of(folder, manifest.read(folder), Shapes.parse("height=32,width=32"))


@reader(_artifact, {**_OF_ARTIFACT, "tokenizer/tokenizer_config.json": m.as_json}, 0.5)
def _pipeline_without_torch(folder: Path) -> None:
    from saeuron.validation.backends.lean.pipeline import LeanPipeline

    pipeline = LeanPipeline(folder, None)  # type: ignore[arg-type]
    pipeline.initial_latents([1])
    pipeline.truncated("a house")


@reader(_artifact, {"scheduler/scheduler_config.json": m.as_json}, 2)
def _scheduler(folder: Path) -> None:
    from saeuron.validation.backends.lean.pipeline import scheduler_of

    for kind in (None, "ddim", "euler"):
        made = scheduler_of(folder, kind)
        made.set_timesteps(4)
        sample = np.ones((1, 2, 2, 2), np.float32)
        with np.errstate(all="ignore"):
            made.step(made.scale_model_input(sample, 0), 0, sample)


def _tokenizer_files(folder: Path) -> None:
    _artifact(folder)


@reader(_tokenizer_files, {"tokenizer/tokenizer_config.json": m.as_json, "tokenizer/tokenizer.json": m.as_json}, 0.3)
def _tokenizer(folder: Path) -> None:
    from saeuron.validation.backends.lean.tokenizer import ClipTokenizer

    made = ClipTokenizer(folder / "tokenizer")
    made(["a house", ""])
    made.tokens("a house")


def _lists(folder: Path) -> None:
    _artifact(folder)
    model = (
        json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"] if (folder / "tokenizer/tokenizer.json").is_file() else None
    )
    if model is not None:
        _put(folder, "tokenizer/vocab.json", json.dumps(model["vocab"]))
        _put(
            folder,
            "tokenizer/merges.txt",
            "#version: 0.2\n" + "\n".join(x if isinstance(x, str) else " ".join(x) for x in model["merges"]) + "\n",
        )
        (folder / "tokenizer/tokenizer.json").unlink()


@reader(_lists, {"tokenizer/vocab.json": m.as_json, "tokenizer/merges.txt": m.as_lines}, 0.3)
def _tokenizer_of_lists(folder: Path) -> None:
    _tokenizer(folder)


@reader(
    lambda f: shutil.copytree(demo.resolve("demo"), f / "m") and None,
    {f"m/{n}": k for n, k in _OF_ARTIFACT.items()} | {"m/vae/diffusion_pytorch_model.safetensors": m.as_safetensors},
    0.5,
)
def _model_folder(folder: Path) -> None:
    from saeuron.editor.denoisers.families import sizes_in
    from saeuron.editor.denoisers.pipelines import check_folder

    check_folder(folder / "m")
    sizes_in(folder / "m")


def _graphs(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 8), np.float32), "w")
    known, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", s]) for n, s in (("x", 4), ("y", 8)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [known], [made], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx")


@reader(_graphs, {"model.onnx": m.raw})
def _onnx_graph(folder: Path) -> None:
    from saeuron.validation.artifact.weights import _used
    from saeuron.validation.backends.sessions import open_session

    list(_used(folder / "model.onnx"))
    open_session(folder / "model.onnx")


@reader(
    lambda f: (
        _put(f, "p.csv", "prompt,seed,sd_guidance_scale\na house,3,7.5\nb,4,\n"),
        _put(f, "p.tsv", "prompt\tseed\na\t3\n"),
        _put(f, "p.txt", "a\nb\n"),
    )[0],
    {"p.csv": m.as_lines, "p.tsv": m.as_lines, "p.txt": m.as_lines},
)
def _prompts_of_a_user(folder: Path) -> None:
    from saeuron.validation.evidence.prompt_file import read_prompts

    for ending in ("csv", "tsv", "txt"):
        read_prompts(folder / f"p.{ending}", 1, 7.5)


def _npy(folder: Path) -> None:
    from safetensors.numpy import save_file

    made = io.BytesIO()
    np.save(made, np.zeros((1, 2, 4, 4), np.float32))
    _put(folder, "l.npy", made.getvalue())
    save_file({"latents": np.zeros((1, 2, 4, 4), np.float32)}, folder / "l.safetensors")


@reader(_npy, {"l.npy": m.raw, "l.safetensors": m.as_safetensors})
def _latents(folder: Path) -> None:
    from saeuron.export.commands.generate import _read_latents

    _read_latents(folder / "l.npy")
    _read_latents(folder / "l.safetensors")


@reader(
    lambda f: (
        _put(f, "object.txt", "House\nCar\n"),
        _put(f, "preprocess.json", json.dumps({"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": 0.5})),
    )[0],
    {"object.txt": m.as_lines, "preprocess.json": m.as_json},
)
def _judge_of_ones_own(folder: Path) -> None:
    from saeuron.validation.judges.onnx_graphs import _label_lines, _preprocessing

    _label_lines(folder / "object.txt")
    _preprocessing(folder / "preprocess.json")


def damaged(one: Reader, folder: Path, seed: int, number: int) -> tuple[str, bytes]:
    """The input of this number, whatever came before it: the file that is damaged, and its content."""
    rng = random.Random(f"{seed}/{one.name}/{number}")
    name = rng.choice(sorted(one.files))
    if name not in one.held:
        one.held[name] = (folder / name).read_bytes()
    try:
        return name, one.files[name](rng, one.held[name])
    except RecursionError:  # nested too deep to be written as JSON
        return name, m.raw(rng, one.held[name])
