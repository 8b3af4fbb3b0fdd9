"""Shared pieces: a tiny random pipeline and SAE for fast checks; the embedded demo for real ones."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeuron.editor.sae.formats.config import SaeFile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import UNet2DConditionModel
from filelock import FileLock

from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule
from saeuron.editor.sae.formats.config import SaeConfig
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.artifact import Result

HOOKPOINT = "up_blocks.0.attentions.1"
WIDTH = 32

# What a test left to be collected may wait for threads that a fork doesn't have: an ONNX Runtime session does, for ever.
os.register_at_fork(after_in_child=gc.freeze)

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)  # as many workers as cores: more threads would only wait for each other


def make_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels, cross-attention in both; small enough for hundreds of forwards."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, WIDTH), norm_num_groups=8, cross_attention_dim=24,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return unet.eval().requires_grad_(False)


def make_sae(
    width: int = WIDTH, latents: int = 256, k: int = 8, seed: int = 0, unit_norm: bool = False, activation: str = "topk", **kind: Any
) -> SparseAutoencoder:
    """Random directions with a spread of biases, so that latents differ in how often they fire."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    tensors = {
        "W_enc": rows.clone(),
        "b_enc": 0.1 * torch.randn(latents, generator=generator),
        "W_dec": rows,
        "b_dec": 0.1 * torch.randn(width, generator=generator),
    }
    if activation == "jumprelu":
        tensors["threshold"] = 0.5 + torch.rand(latents, generator=generator)
    config = SaeConfig(width, latents, k if activation == "topk" else None, unit_norm, activation, **kind)
    return SparseAutoencoder.from_file(SaeFile(config, tensors, "test"))


def make_activations(
    latents: int = 256, concepts: tuple[str, ...] = ("A", "B", "C"), steps: int = 10, seed: int = 0, scale: float = 0.3
) -> ConceptActivations:
    generator = torch.Generator().manual_seed(seed)
    means = scale * torch.rand(len(concepts), steps, latents, generator=generator)
    return ConceptActivations(
        list(concepts),
        [2 + i for i in range(len(concepts))],
        means,
        torch.arange(steps - 1, -1, -1) * (1000 // steps) + 1,
        kth=torch.full((steps,), 0.5),
    )


def edit_of(activations: ConceptActivations, *wishes: tuple[str, str, float], hookpoint: str = HOOKPOINT, residual: str = "keep") -> Edit:
    """Edit from (concept, rule, multiplier) triples at one hookpoint."""
    made = [Suppression(concept, hookpoint, Rule.parse(rule), multiplier) for concept, rule, multiplier in wishes]
    return make_edit(made, {(w.concept, hookpoint): activations for w in made}, residual)


def block_output(network: Any, x: torch.Tensor, t: Any, c: torch.Tensor) -> torch.Tensor:
    """What the block at `HOOKPOINT` gives in a forward, `[B, d, H, W]`."""
    got: list[torch.Tensor] = []
    handle = network.get_submodule(HOOKPOINT).register_forward_hook(lambda m, a, o: got.append(o[0] if isinstance(o, tuple) else o))
    network(x, t, c)
    handle.remove()
    return got[0]


def with_open_gates(unet: Any, baked: Any, edit: Edit, saes: Any, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Outputs of hook and baked network with straight-through gates, and the gradients by the text's states of their squares' sums."""
    from saeuron.validation.attack.straight_through import StraightThroughHook, open_gates

    context = c.clone().requires_grad_()
    with StraightThroughHook(unet, edit, saes):
        hooked = unet(x, 500, context).sample
    with open_gates(baked):
        shipped = baked(x, 500, context).sample
    return hooked, shipped, *(torch.autograd.grad(out.square().sum(), context)[0] for out in (hooked, shipped))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the cache of whoever runs it."""
    monkeypatch.setenv("SAEURON_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def graphs_once(tmp_path_factory):
    """See there; all workers share what one wrote."""
    from tests.graphs_once import once

    from saeuron.export.formats import onnx

    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "write", once(onnx.write, (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "graphs"))
        yield


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture(scope="session")
def sae() -> SparseAutoencoder:
    return make_sae()


@pytest.fixture(scope="session")
def activations() -> ConceptActivations:
    return make_activations()


@pytest.fixture
def edit(activations: ConceptActivations) -> Edit:
    return edit_of(activations, ("A", "count:20", -3.0), ("B", "percentile:90", -2.0))


def inputs(
    batch: int = 2, height: int = 8, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample and context of a forward."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, height, width, generator=generator).to(dtype), torch.randn(batch, 6, 24, generator=generator).to(dtype)


def check_plan(result: Result, settings: Settings) -> None:
    """The dry run of `settings` names exactly the files that their export wrote."""
    from saeuron.export.plan.dry_run import describe

    planned = describe(replace(settings, output=result.path.with_name("planned")))["files"]
    written = {p.relative_to(result.path).as_posix() for p in result.path.rglob("*") if p.is_file()}
    assert set(planned) == {re.sub(r"saeuron_edit_[0-9a-f]+\.py", "saeuron_edit_<hash>.py", name) for name in written}
    assert len(planned) == len(set(planned))


def run(*options: Any, code: int = 0) -> Any:
    """A command in this process, as a user types it."""
    from typer.testing import CliRunner

    from saeuron.export.cli import app

    result = CliRunner().invoke(app, [str(o) for o in options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + (repr(result.exception) if result.exception else "")
    return result


def refused(message: str, *options: Any) -> None:
    """A command ends with one line and exit code 2."""
    result = run(*options, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert result.stdout == ""


def put(options: Sequence[Any], *given: Any) -> list[Any]:
    """Options with some of them given another value: each option that `given` names is taken out first, with its value."""
    kept, names = list(options), {o for o in given if str(o).startswith("--")}
    for at in reversed([n for n, o in enumerate(kept) if o in names]):
        del kept[at : at + 2]
    return [*kept, *given]


def guard(model: Path, folder: Path) -> None:
    """The pipeline of `model` with a tiny random safety checker and its feature extractor; `folder` may be `model`."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    config = CLIPConfig(
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10},
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}, projection_dim=8,
    )  # fmt: skip
    # Files are copied: saved anew they would be another model's, by their digests.
    if folder != model:
        shutil.copytree(model, folder)
    StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(crop_size=32, size=32).save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random pipeline with its SAE and activations as local folders: `{model, sae, activations}`."""
    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    tokenizer = make_tokenizer(root / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24,
                                        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "model")
    make_sae().save(root / "sae" / f"unet.{HOOKPOINT}")
    make_activations().save(root / "activations.safetensors")
    return {"model": root / "model", "sae": root / "sae", "activations": root / "activations.safetensors"}


PLACE = "up_blocks.1.attentions.1"
"""of the demo"""


@pytest.fixture(scope="session")
def without_sunset():
    """The demo without the style Sunset, to attack: original, victims (checkpoint-like, hooked and unedited), judge, case."""
    from saeuron.editor import demo
    from saeuron.editor.denoisers.families import rebuilt
    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.edit.bake import bake
    from saeuron.validation.attack.cases import cases
    from saeuron.validation.attack.victims import Baked, Hooked, bare
    from saeuron.validation.judges.choose import open_labels

    original, saes = bare(load_pipeline("demo")), {PLACE: SparseAutoencoder.load(demo.SAES, PLACE)}
    activations = ConceptActivations.load(demo.resolve(f"demo:style-{PLACE}.safetensors"))
    edit, judge = edit_of(activations, ("Sunset", "count:2", -1.0), hookpoint=PLACE), open_labels("demo")
    victims = {
        "checkpoint": Baked(rebuilt(original, unet=bake(original.unet, edit, saes)), edit),
        "hook": Hooked(original, edit, saes),
        "unedited": Baked(original, Edit({})),
    }
    return original, victims, judge, cases(judge, ["Sunset"], ["Sunset"])[0]


XL_HOOKPOINT = "up_blocks.0.attentions.0"


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory):
    """A tiny random SDXL pipeline: two text encoders of different width and different padding, added conditions, and an
    SAE that reads what the block adds, in sdxl-unbox's files. The same keys as `tiny`."""
    import json

    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    root = tmp_path_factory.mktemp("tiny_xl")
    torch.manual_seed(2)
    tokenizer = make_tokenizer(root / "tokenizer")
    other = CLIPTokenizer.from_pretrained(root / "tokenizer", pad_token="!", model_max_length=tokenizer.model_max_length)

    def text(width: int, heads: int, layers: int, pad: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=heads, projection_dim=20,
            max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, WIDTH), norm_num_groups=8, cross_attention_dim=40,
        attention_head_dim=(2, 4), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 20,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text(24, 2, 1, tokenizer.pad_token_id)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text(16, 2, 2, other.pad_token_id)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=other,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(root / "model")
    sae = make_sae(latents=128, seed=3, reads="delta")
    (root / "sae").mkdir()
    (root / "sae" / "config.json").write_text(json.dumps({"d_model": WIDTH, "n_dirs_local": 128, "k": sae.config.k}))
    state = {"encoder.weight": sae.W_enc, "latent_bias": sae.b_enc, "decoder.weight": sae.W_dec.T.contiguous(), "pre_bias": sae.b_dec}
    torch.save({k: v.detach() for k, v in state.items()}, root / "sae" / "state_dict.pth")
    make_activations(latents=128).save(root / "activations.safetensors")
    return {"model": root / "model", "sae": root / "sae", "activations": root / "activations.safetensors"}


def xl_settings(tiny_xl: dict[str, Any], output: Path, **changes: Any) -> Settings:
    """The main job on `tiny_xl`."""
    known: dict[str, Any] = {
        "concepts": ("A",), "output": output, "model": str(tiny_xl["model"]), "sae": (str(tiny_xl["sae"]),), "hookpoint": XL_HOOKPOINT,
        "activations": (str(tiny_xl["activations"]),), "select": "count:20", "multiplier": -3.0, "steps": 3, "guidance": 4.0,
    }  # fmt: skip
    return Settings(**(known | changes))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Result]) -> Result:
    """An artifact made by the first worker that asks, in a folder that all workers of this run share."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "result").exists():
            (folder / "result").write_bytes(pickle.dumps(make(folder / "artifact")))
        return pickle.loads((folder / "result").read_bytes())


@pytest.fixture(scope="session")
def xl_artifact(tiny_xl, tmp_path_factory):
    """The main job on the tiny SDXL pipeline, checkpoint and ONNX, fully proven."""
    from saeuron.export.ship.stages import export_artifact

    return made_once(tmp_path_factory, "xl", lambda path: export_artifact(xl_settings(tiny_xl, path)))


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory):
    """The main job on the embedded demo, by features of its SAEs: one style and one object, checkpoint and ONNX, fully proven."""
    from saeuron.export.ship.stages import export_artifact

    return made_once(tmp_path_factory, "demo", lambda path: export_artifact(Settings(("Neon", "House"), path, intervention="multiply")))


def demo_as_onnx(folder: Path, scaled: bool = True) -> Path:
    """The demo's classifier as a folder for `--judge onnx=DIR`; `scaled`: the graphs take pictures in [0, 1]."""
    from saeuron.editor import demo
    from saeuron.editor.demo.classifier import DemoClassifier

    class Head(torch.nn.Module):
        def __init__(self, model: DemoClassifier, head: str) -> None:
            super().__init__()
            self.model, self.head = model, getattr(model, head)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.head(self.model.features(pictures) if scaled else self.model.trunk(pictures))

    folder.mkdir(exist_ok=True)
    model = DemoClassifier.load(demo.CLASSIFIER).eval()
    for kind, labels in (("object", model.objects), ("style", [*model.styles, "plain"])):
        (folder / f"{kind}.txt").write_text("\n".join(labels) + "\n")
        batch = {0: torch.export.Dim("batch")}
        program = torch.onnx.export(
            Head(model, f"{kind}_head"),
            (torch.rand(2, 3, 32, 32),),
            dynamo=True,
            dynamic_shapes=(batch,),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(folder / f"{kind}.onnx"))
    return folder


def by_two_processes(*arguments):
    """Run `saeuron` by two processes on the CPU.

    `accelerate launch --cpu` starts a single one; torchrun starts two, which accelerate finds by the environment.
    """
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "saeuron", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done
