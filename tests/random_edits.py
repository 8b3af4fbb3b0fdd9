"""Random small pipelines with random SAEs and edits, an independent float64 computation of them, and edits that are slightly wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from onnx import numpy_helper
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from saeuron.editor import demo
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.how import How
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule
from saeuron.editor.sae.formats.config import SaeConfig, SaeFile
from saeuron.editor.sae.sae import SparseAutoencoder

PROMPTS = ["An image of House in Neon style.", "An image of Star.", "A drawing of Boat in Sepia style."]


@dataclass
class Wanted:
    """One random pipeline with its edit."""

    pipeline: Any
    edit: Edit
    saes: dict[str, SparseAutoencoder]
    gate: str
    steps: int
    guidance: float
    said: str
    """in words"""


def make(seed: int, kind: str = "features") -> Wanted:
    """A pipeline of random sizes with random weights; the SAEs' activations are measured on the model, so that the edit fires.

    Args:
        seed: of everything.
        kind: what is edited: `features` of SAEs, features with gains `by token`, or `directions` (project or probe, norm free or kept).
    """
    pick = np.random.default_rng(seed)
    torch.manual_seed(seed)
    low, high = [(32, 64), (16, 32), (32, 48)][pick.integers(3)]
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(low, high), norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    text = CLIPTextConfig(vocab_size=615, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=24,
                          bos_token_id=613, eos_token_id=614, pad_token_id=614)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        norm_num_groups=4, latent_channels=4, sample_size=16)  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), tokenizer=AutoTokenizer.from_pretrained(demo.PIPELINE / "tokenizer"), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for network in (unet, vae, pipeline.text_encoder):
        network.eval().requires_grad_(False)
    steps, residual = int(pick.integers(3, 6)), ["keep", "keep", "upstream", "drop"][pick.integers(4)]
    gate = "threshold" if residual == "keep" and pick.random() < 0.4 else "exact"
    if kind != "features":
        residual, gate = "keep" if kind == "directions" else residual, "exact"
    multiplier = -float(pick.choice([0.5, 1, 5, 20]))
    rule = ["count:3", "count:20", "percentile:99", "percentile:90"][pick.integers(4)]
    points = ["up_blocks.0.attentions.1", "up_blocks.1.attentions.0"][: 1 + int(pick.random() < 0.4)]
    saes, activations = {}, {}
    for point in points:
        width = unet.get_submodule(point).config.in_channels if hasattr(unet.get_submodule(point), "config") else None
        width = width or (high if point.startswith("up_blocks.0") else low)
        saes[point] = token_parts(width) if kind == "directions" else _sae(pick, width, top=kind == "by token")
        activations["A", point] = _measured(pipeline, saes[point], point, steps)
    guidance, intervention = float(pick.choice([1.0, 3.0, 7.5])), str(pick.choice(["multiply", "multiply", "zero", "clamp"]))
    how = How()
    if kind == "by token":
        intervention, how = "multiply", How(gain="token")
    if kind == "directions":
        intervention = str(pick.choice(["project", "probe"]))
        how = How(norm=str(pick.choice(["free", "kept"]))) if intervention == "project" else how
        for (concept, point), held in activations.items():
            spread = torch.randn(1, held.latents // 2, held.latents // 2, generator=torch.Generator().manual_seed(seed))
            within = spread @ spread.mT / spread.shape[-1] if intervention == "probe" else None
            activations[concept, point] = replace(held if intervention == "probe" else held.pair("A", "B"), within=within)
    edit = make_edit([Suppression("A", p, Rule.parse(rule), multiplier, intervention, how) for p in points], activations, residual)
    saes = edit.saes(saes)
    kinds = "/".join(f"{s.config.num_latents} {s.config.activation}{'' if s.config.k is None else s.config.k}{' unit norm' if s.config.input_unit_norm else ''}{' delta' if s.config.reads == 'delta' else ''}" for s in saes.values())  # fmt: skip
    done = f"{multiplier:g}" if intervention == "multiply" else intervention if kind == "features" else f"{intervention} {multiplier:g}"
    said = f"{low}/{high}, {kinds}, {rule}, {', '.join(filter(None, (done, str(how))))}, {residual}, {gate}, {steps} steps"
    return Wanted(pipeline, edit, saes, gate, steps, guidance, said)


def _sae(pick: np.random.Generator, width: int, top: bool) -> SparseAutoencoder:
    n, jump = int(pick.choice([128, 512, 1024])), pick.random() < 0.2 and not top
    generator = torch.Generator().manual_seed(int(pick.integers(1 << 30)))
    rows = torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1)
    tensors = {
        "W_enc": rows + 0.02 * torch.randn(n, width, generator=generator), "b_enc": 0.05 * torch.randn(n, generator=generator), "W_dec": rows,
        "b_dec": 0.05 * torch.randn(width, generator=generator),
    }  # fmt: skip
    if jump:
        tensors["threshold"] = 0.3 + torch.rand(n, generator=generator)
    config = SaeConfig(
        width, n, None if jump else int(pick.choice([4, 8, 32])), bool(pick.random() < 0.2), "jumprelu" if jump else "topk", reads="delta" if pick.random() < 0.2 else "output"
    )  # fmt: skip
    return SparseAutoencoder.from_file(SaeFile(config, tensors, "random"))


@torch.no_grad()
def _measured(pipeline: Any, sae: SparseAutoencoder, point: str, steps: int) -> ConceptActivations:
    """Mean activations of three made-up concepts, from the model's own forwards."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    found: list[torch.Tensor] = []

    def look(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        given = output[0] if isinstance(output, tuple) else output if torch.is_tensor(output) else output.sample
        given = given - (args[0] if args else kwargs["hidden_states"]) if sae.config.reads == "delta" else given
        found.append(sae.encode(given.flatten(2).transpose(1, 2)).mean(1))

    handle = pipeline.unet.get_submodule(point).register_forward_hook(look, with_kwargs=True)
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(3, 24, 32, generator=generator)
    for t in scheduler.timesteps:
        pipeline.unet(torch.randn(3, 4, 8, 8, generator=generator), t, context)
    handle.remove()
    means = torch.stack(found).transpose(0, 1)
    return ConceptActivations(["A", "B", "C"], [2, 2, 2], means, scheduler.timesteps.clone(), kth=torch.full((steps,), 0.05))


# -- an independent computation, in float64 and numpy ---------------------------------------------------------------------


def edit_in_float64(wanted: Wanted, point: str, timestep: float, output: np.ndarray, before: np.ndarray | None, dtype: torch.dtype) -> tuple[np.ndarray, ...]:  # fmt: skip
    """METHOD's formulas on tokens `[L, d]`, written without the hook's code; weights as they are at `dtype`.

    Returns:
        edited tokens; the same with gains of 1; decisions bool `[L, U]`; active latents bool `[L, n]`.
    """
    sae, part = wanted.saes[point], wanted.edit.hookpoints[point]
    w = {name: p.detach().to(dtype).double().numpy() for name, p in sae.named_parameters()}
    x = output.astype(np.float64) - (0.0 if before is None else before.astype(np.float64))
    mean, scale = (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + 1e-5) if sae.config.input_unit_norm else (0.0, 1.0)
    z = np.maximum(((x - mean) / scale - w["b_dec"] * sae.config.subtract_bias) @ w["W_enc"].T + w["b_enc"], 0.0)
    times = part.timesteps.numpy()
    row = min(range(len(times)), key=lambda i: (abs(times[i] - timestep), -times[i]))
    bars, gains = part.thresholds[row].double().numpy(), part.gains[row].double().numpy()
    member = z > w["threshold"] if sae.config.k is None else z >= np.sort(z, axis=1)[:, -sae.config.k][:, None]
    features = part.features.numpy()
    if wanted.gate == "threshold" and sae.config.k is not None:
        fires = z[:, features] > part.gate_thresholds[row].double().numpy()
    else:
        fires = member[:, features] & (z[:, features] > bars)
    offsets = part.offsets[row].double().numpy()
    if part.how.gain == "token":
        gains = gains * np.linalg.norm(z * member, axis=1, keepdims=True) / (np.linalg.norm(w["W_dec"][features], axis=1) + 1e-8)
    change = (fires * ((gains - 1) * z[:, features] + offsets)) @ w["W_dec"][features] * scale
    if wanted.edit.residual == "keep":
        neutral = output.astype(np.float64)
    else:
        decoded = (z * member @ w["W_dec"] + w["b_dec"]) * scale + mean
        neutral = decoded + (output - x) + ((decoded - x) if wanted.edit.residual == "upstream" else 0.0)
    made = neutral + change
    if part.how.norm == "kept":
        norms = np.linalg.norm(output.astype(np.float64), axis=1, keepdims=True) / np.maximum(
            np.linalg.norm(made, axis=1, keepdims=True), 1e-30
        )
        made = np.where(fires.any(1, keepdims=True), made * norms, made)
    return made, neutral, fires, member


class Float64:
    """The whole UNet in float64 with `edit_in_float64` in it."""

    def __init__(self, wanted: Wanted, dtype: torch.dtype) -> None:
        import copy

        self.wanted, self.dtype, self.timestep = wanted, dtype, 0.0
        self.unet = copy.deepcopy(wanted.pipeline.unet).double()
        self.fires: dict[str, np.ndarray] = {}
        self._neutral = False
        for point in wanted.edit.hookpoints:
            self.unet.get_submodule(point).register_forward_hook(self._hook(point), with_kwargs=True)

    def _hook(self, point: str) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
            given = output[0] if isinstance(output, tuple) else output if torch.is_tensor(output) else output.sample
            delta = self.wanted.saes[point].config.reads == "delta"
            before = args[0] if args else kwargs["hidden_states"]
            tokens, earlier = (m.flatten(2).transpose(1, 2).reshape(-1, m.shape[1]).numpy() for m in (given, before if delta else given))
            found, neutral, fires, _ = edit_in_float64(self.wanted, point, self.timestep, tokens, earlier if delta else None, self.dtype)
            self.fires[point] = fires
            b, d, h, w = given.shape
            made = torch.from_numpy(neutral if self._neutral else found).view(b, h * w, d).transpose(1, 2).reshape(b, d, h, w)
            return (made, *output[1:]) if isinstance(output, tuple) else made if torch.is_tensor(output) else type(output)(sample=made)

        return hook

    @torch.no_grad()
    def __call__(self, sample: np.ndarray, timestep: float, context: np.ndarray, neutral: bool = False) -> np.ndarray:
        self.timestep, self._neutral = timestep, neutral
        return self.unet(torch.from_numpy(sample).double(), timestep, torch.from_numpy(context).double(), return_dict=False)[0].numpy()


# -- edits that are slightly wrong ----------------------------------------------------------------------------------------

Tables = dict[str, np.ndarray]
"""buffer → value of one hookpoint's edit"""


def _lose_a_feature(t: Tables, fired: np.ndarray) -> None:
    lost = int(np.where(fired > 0, fired, np.iinfo(np.int64).max).argmin())  # the one that fires least
    t["gains"][:, lost], t["offsets"][:, lost] = 1.0, 0.0


def _halve(t: Tables, fired: np.ndarray) -> None:
    t["gains"][:], t["offsets"][:] = 1 + (t["gains"] - 1) / 2, t["offsets"] / 2


def _shift(t: Tables, fired: np.ndarray) -> None:
    for name in ("gains", "offsets", "thresholds"):
        t[name][:] = np.roll(t[name], 1, axis=0)


def _lose_all(t: Tables, fired: np.ndarray) -> None:
    t["gains"][:], t["offsets"][:] = 1.0, 0.0


def _other_features(t: Tables, fired: np.ndarray) -> None:
    t["features"][:] = np.sort((t["features"] + 1) % len(t["encoder_weight"]))


def _other_rows(t: Tables, fired: np.ndarray) -> None:
    t["decoder_weight"][:] = np.roll(t["decoder_weight"], 1, axis=0)


MUTANTS: dict[str, Callable[[Tables, np.ndarray], None]] = {
    "one feature lost": _lose_a_feature, "gains halved": _halve, "tables one step off": _shift, "one hookpoint lost": _lose_all,
    "rows of other features": _other_rows,
}  # fmt: skip


@contextlib.contextmanager
def spoiled(unet: Any, point: str, change: Callable[[Tables, np.ndarray], None], fired: np.ndarray) -> Iterator[None]:
    """A baked UNet with changed buffers at one hookpoint while the context is open."""
    module = unet.ablations[point.replace(".", "-")]
    kept = {name: b.clone() for name, b in module.named_buffers()}
    tables = {name: b.float().numpy().copy() if b.is_floating_point() else b.numpy().copy() for name, b in kept.items()}
    change(tables, fired)
    try:
        for name, b in module.named_buffers():
            b.copy_(torch.from_numpy(tables[name]))
        yield
    finally:
        for name, b in module.named_buffers():
            b.copy_(kept[name])


def spoil_graph(path: Path, target: Path, point: str, change: Callable[[Tables, np.ndarray], None], fired: np.ndarray) -> None:
    """A copy of an exported UNet with changed tables at one hookpoint; only `gains`, `offsets` and `thresholds` keep their form in a graph."""
    model = onnx.load(str(path))
    held = {w.name: w for w in model.graph.initializer}
    key = point.replace(".", "-")
    # Equal tables of two hookpoints are one in the graph, under either's name: both are then spoiled.
    found = {
        name: next((w for n, w in held.items() if f"ablations.{key}.{name}" in n), None)
        or next((w for n, w in held.items() if n.endswith(f".{name}")), None)
        for name in ("gains", "offsets", "thresholds")
    }
    assert all(w is not None for w in found.values()), sorted(n for n in held if "ablations" in n)
    tables = {name: numpy_helper.to_array(w).copy() for name, w in found.items()}
    change(tables, fired)
    for name, w in found.items():
        w.CopyFrom(numpy_helper.from_array(tables[name], w.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    shutil.copyfile(path.parents[1] / "model_index.json", target.parents[1] / "model_index.json")
