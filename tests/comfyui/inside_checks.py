"""The checks that run inside ComfyUI. Each gives figures as plain values; what must raise gives what it said."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_model_advanced as advanced
import comfy_extras.nodes_model_merging as merging
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from saeuron_nodes.artifact import Artifact
from saeuron_nodes.model import load_clip, load_model, load_vae
from saeuron_nodes.verify import verify
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

SIZE = 8
PLACE = "diffusion_model.output_blocks.1.1"
"""of up_blocks.0.attentions.1"""


def unedited(artifact: Path) -> Any:
    """The same weights without the edit, as what must not come out."""
    opened = Artifact(artifact)
    state, _ = opened.unet()
    opened.unet = lambda: (state, {})  # type: ignore[method-assign]
    return load_model(opened)


def conditions(artifact: Path) -> Any:
    """Of two prompts, as `KSampler` takes them."""
    clip = load_clip(Artifact(artifact))
    return [
        [[tensor, {"pooled_output": pooled}]]
        for tensor, pooled in (clip.encode_from_tokens(clip.tokenize(p), return_pooled=True) for p in ("a house", ""))
    ]


def noise(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


def sampled(model: Any, given: Any, steps: int = 4, sampler: str = "euler", scheduler: str = "normal", batch: int = 2) -> torch.Tensor:
    start = noise(batch)
    return comfy.sample.sample(
        model, start, steps, 5.0, sampler, scheduler, given[0], given[1], torch.zeros_like(start), seed=4, disable_pbar=True
    )


def forward(model: Any, control: Any = None) -> torch.Tensor:
    """One of ComfyUI's own calls of its model, at sigma of timestep 501."""
    comfy.model_management.load_models_gpu([model])
    sampling = model.model.model_sampling
    x = noise() * sampling.sigmas[501].item()
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(6))
    return model.model.apply_model(x, sampling.sigmas[501].repeat(2), c_crossattn=context, control=control, transformer_options=model.model_options["transformer_options"].copy())  # fmt: skip


def share(found: torch.Tensor, right: torch.Tensor, other: torch.Tensor) -> float:
    """Distance to `right`, of what the edit does."""
    return float((found.double() - right.double()).norm() / (right.double() - other.double()).norm())


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def golden(artifact: Path) -> dict[str, Any]:
    """All golden forwards."""
    result = verify(load_model(Artifact(artifact)))
    return {
        "passed": result.passed, "pooled": result.pooled, "worst": max(row.share for row in result.rows), "forwards": len(result.rows), "turned": sum(row.turned for row in result.rows),
        "unedited": min((row.unedited / row.effect for row in result.rows if row.effect), default=0.0),
        "largest": max(row.distance for row in result.rows), "decisions": sum(row.decisions for row in result.rows), "text": result.text,
    }  # fmt: skip


def spoiled(artifact: Path) -> dict[str, Any]:
    """What `verify` says of edits that are slightly wrong."""
    found = {}
    for name, change in {
        "gains halved": lambda b: b.gains.copy_(1 + (b.gains - 1) / 2), "thresholds raised": lambda b: b.thresholds.add_(1.0),
        "another step's table": lambda b: b.gains.copy_(b.gains.roll(1, 0)), "another feature's row": lambda b: b.decoder_weight.copy_(b.decoder_weight.roll(1, 0)),
        "nothing done": lambda b: (b.gains.fill_(1.0), b.offsets.zero_()),
    }.items():  # fmt: skip
        model = load_model(Artifact(artifact))
        for block in model.model.saeuron_edit.blocks.values():
            change(block)
        result = verify(model)
        found[name] = {"passed": result.passed, "worst": max(row.share for row in result.rows)}
    return found


def components(artifact: Path) -> dict[str, float]:
    """Text encoder and autoencoder beside the golden vectors; the largest difference relative to the largest value."""
    from safetensors import safe_open

    opened, found = Artifact(artifact), {}
    with safe_open(opened.file("edit/golden.safetensors"), "pt") as file:
        known = {n: {k: file.get_tensor(w) for k, w in t.items()} for n, t in json.loads(file.metadata()["content"])["components"].items()}
    for name, values in known.items():
        if name == "vae_decoder":
            vae = load_vae(opened)
            made = vae.first_stage_model.to(torch.float32).decode(values["latent_sample"])
            found[name] = float((made - values["sample"]).abs().max() / values["sample"].abs().max())
        if name.startswith("text_encoder"):
            clip = load_clip(opened)
            kind = {"text_encoder_2": "clip_g"}.get(name, "clip_l" if hasattr(clip.cond_stage_model, "clip_l") else "clip_h")
            part = getattr(clip.cond_stage_model, kind)
            layers = part.transformer.num_layers
            last, middle, pooled = part.transformer(
                values["input_ids"], intermediate_output=layers - 2, final_layer_norm_intermediate=kind == "clip_h"
            )[:3]
            wanted = {"clip_l": "last_hidden_state", "clip_h": "last_hidden_state", "clip_g": f"hidden_states.{layers - 1}"}[kind]
            if wanted in values:
                made = last if kind == "clip_l" else middle
                found[name] = float((made - values[wanted]).abs().max() / values[wanted].abs().max())
    return found


def sampler(artifact: Path, out: Path) -> dict[str, Any]:
    """One run of KSampler's Euler, with all that is needed to repeat it elsewhere; and what fired in it."""
    given, model = conditions(artifact), load_model(Artifact(artifact))
    sigmas = comfy.samplers.KSampler(model, 6, torch.device("cpu"), "euler", "normal").sigmas
    found, other = sampled(model, given, 6), sampled(unedited(artifact), given, 6)
    edit = model.model.saeuron_edit
    fired = {f"fired/{name}": value for name, value in edit.fired.shares().items()} if out else {}
    if not fired:
        raise AssertionError("nothing fired")
    save_file(
        {
            "sigmas": sigmas,
            "noise": noise(),
            "cond": given[0][0][0].contiguous(),
            "uncond": given[1][0][0].contiguous(),
            "found": found,
            "other": other,
            **fired,
        },
        out,
    )
    more = {
        name: share(sampled(load_model(Artifact(artifact)), given, 6, *name.split("/")), sampled(unedited(artifact), given, 6, *name.split("/")), torch.zeros(()))
        for name in ("dpmpp_2m/karras", "dpmpp_2m_sde/normal", "uni_pc/simple", "lcm/sgm_uniform", "ddim/ddim_uniform", "heun/exponential", "dpm_adaptive/beta")
    }  # fmt: skip
    return {"concepts": edit.fired.concepts, "effect": float((found - other).norm() / other.norm()), "others": more}


def heat(artifact: Path) -> dict[str, Any]:
    """Pictures of what fired, after a sampling; and what is said without one."""
    from saeuron_nodes.heat import over

    given, model, vae = conditions(artifact), load_model(Artifact(artifact)), load_vae(Artifact(artifact))
    edit = model.model.saeuron_edit
    nothing = refused(lambda: over(torch.zeros(2, 64, 64, 3), edit.fired))
    clone = model.clone()
    pictures = vae.decode(sampled(clone, given))
    made, table = over(pictures, edit.fired)
    first = {n: s.clone() for n, s in edit.fired.shares().items()}
    sampled(model, given)
    again = edit.fired.shares()
    return {
        "nothing": nothing, "pictures": list(pictures.shape), "made": list(made.shape), "table": table, "other pictures": refused(lambda: over(pictures[:1], edit.fired)),
        "red": float((made[..., 0] - made[..., 1]).amax()), "same again": all(torch.equal(first[n], again[n]) for n in first),
    }  # fmt: skip


def survives(artifact: Path, lora: Path, residuals: Path, out: Path) -> dict[str, Any]:
    """What other nodes may do to the model; distances are of the edit's effect."""
    model, plain = load_model(Artifact(artifact)), unedited(artifact)
    right, other = forward(model).clone(), forward(plain).clone()
    found: dict[str, Any] = {
        "clone": share(forward(model.clone().clone()), right, other),
        "deepcopy": share(copied(artifact), right, other),
    }

    patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora), 1.0, 0.0)
    added = load_file(residuals)
    control = lambda: {"middle": [added["middle"].clone()], "output": [added[f"output.{i}"].clone() for i in range(len(added) - 1)]}  # noqa: E731
    save_file({
        "context": torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(6)), "x": noise(), "sigma": model.model.model_sampling.sigmas[501].reshape(1),
        "plain": right, "unedited": other, "lora": forward(patched).clone(), "unedited lora": forward(comfy.sd.load_lora_for_models(plain, None, load_file(lora), 1.0, 0.0)[0]).clone(),
        "control": forward(model, control()).clone(), "unedited control": forward(plain, control()).clone(),
    }, out)  # fmt: skip
    found["lora taken away"] = share(forward(model), right, other)

    streamed = load_model(Artifact(artifact))
    comfy.model_management.load_models_gpu([streamed])
    streamed.detach()
    streamed.load(torch.device("cpu"), lowvram_model_memory=1)
    casting = sum(bool(getattr(m, "comfy_cast_weights", False)) for m in streamed.model.modules())
    found["streamed weights"] = {"layers": casting, "share": share(forward_of(streamed.model, streamed), right, other)}

    given = conditions(artifact)
    whole, without = sampled(model, given), sampled(plain, given)
    for backend in ("eager", "inductor"):
        # Only sampling takes up the node's wrapper.
        compiled = model.clone()
        set_torch_compile_wrapper(compiled, backend=backend)
        torch._dynamo.reset()
        counters.clear()
        found[f"torch.compile {backend}"] = {
            "share": share(sampled(compiled, given), whole, without),
            "graphs": counters["stats"]["unique_graphs"],
        }

    for name, dtype in {
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "fp8_e4m3fn": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
    }.items():
        edited = load_model(Artifact(artifact), dtype)
        opened = Artifact(artifact)
        state, blocks = opened.unet()
        opened.unet = lambda state=state: (state, {})  # type: ignore[method-assign]
        bare = load_model(opened, dtype)
        a, b = forward(edited), forward(bare)
        done, wanted = (a - b).double().flatten(), (right - other).double().flatten()
        found[name] = {
            "kept": float(done @ wanted / (wanted @ wanted)), "from the unedited": float((a - other).double().norm() / wanted.norm()),
            "tables": str({b.thresholds.dtype for b in edited.model.saeuron_edit._copies.values()}), "computes in": str(edited.model.manual_cast_dtype),
        }  # fmt: skip
        if name.startswith("fp8"):
            found[name]["verify"] = refused(lambda edited=edited: verify(edited))
        else:
            result = verify(edited)
            found[name]["verify"] = [result.passed, result.pooled, result.failures]
    return found


def copied(artifact: Path) -> torch.Tensor:
    """With a deep copy of the UNet; ComfyUI's own model around it can't be copied."""
    model = load_model(Artifact(artifact))
    model.model.diffusion_model = copy.deepcopy(model.model.diffusion_model)
    return forward(model)


def forward_of(inner: Any, model: Any) -> torch.Tensor:
    sampling = model.model.model_sampling
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(6))
    return inner.apply_model(
        noise() * sampling.sigmas[501].item(), sampling.sigmas[501].repeat(2), c_crossattn=context, transformer_options={}
    )


def fails_closed(artifact: Path, scratch: Path) -> dict[str, Any]:
    """What must be refused, and what is said. Each call would otherwise give or keep a model without its edit."""
    model, plain, given = load_model(Artifact(artifact)), unedited(artifact), conditions(artifact)
    found = {}
    save = scratch / "out.safetensors"
    found["ModelSave"] = refused(lambda: comfy.sd.save_checkpoint(str(save), model))
    found["CheckpointSave of a clone"] = refused(
        lambda: comfy.sd.save_checkpoint(str(save), model.clone().clone(), load_clip(Artifact(artifact)), load_vae(Artifact(artifact)))
    )
    assert not save.exists()
    for name, call in {
        "ModelMergeSimple, into it": lambda: merging.ModelMergeSimple().merge(model, plain, 0.5), "ModelMergeSimple, from it": lambda: merging.ModelMergeSimple().merge(plain, model, 0.5),
        "ModelMergeSimple, from a clone": lambda: merging.ModelMergeSimple().merge(plain, model.clone().clone(), 0.5),
        "ModelMergeSubtract": lambda: merging.ModelSubtract().merge(plain, model, 1.0), "ModelMergeAdd": lambda: merging.ModelAdd().merge(model.clone(), plain),
        "ModelMergeBlocks": lambda: merging.ModelMergeBlocks().merge(model, plain, input=0.5),
    }.items():  # fmt: skip
        found[name] = refused(call)

    def hooked() -> Any:
        """As `Create Hook Model as LoRA` does, with another model's weights in place of its own."""
        group = comfy.hooks.create_hook_model_as_lora(dict(plain.model.state_dict()), None, 1.0, 0.0)
        return sampled(model, [[[c[0][0], {**c[0][1], "hooks": group}]] for c in given])

    found["Create Hook Model as LoRA"] = refused(hooked)

    def patched(name: str, thing: Any, of: Any = model) -> Any:
        made = of.clone()
        made.add_object_patch(name, thing)
        return made

    inner = plain.model
    for name, thing in {
        PLACE: inner.get_submodule(PLACE), PLACE.rpartition(".")[0]: inner.get_submodule(PLACE.rpartition(".")[0]), "diffusion_model.output_blocks": inner.diffusion_model.output_blocks,
        "diffusion_model": inner.diffusion_model, "diffusion_model.forward": inner.diffusion_model.forward, "diffusion_model._forward": inner.diffusion_model._forward,
        "diffusion_model.middle_block": inner.diffusion_model.middle_block,
    }.items():  # fmt: skip
        found[f"object patch {name}"] = refused(lambda name=name, thing=thing: sampled(patched(name, thing), given))
        found[f"object patch {name}, then clones"] = refused(lambda name=name, thing=thing: sampled(patched(name, thing).clone(), given))
    found["own forward of the class"] = refused(
        lambda: type(inner.diffusion_model)._forward(
            model.model.diffusion_model, noise(), torch.tensor([5.0, 5.0]), context=given[0][0][0].repeat(2, 1, 1)
        )
    )

    for kind in ("eps", "edm", "v_prediction"):
        found[f"ModelSamplingContinuousEDM {kind}"] = refused(
            lambda kind=kind: sampled(advanced.ModelSamplingContinuousEDM().patch(model, kind, 120.0, 0.002)[0], given)
        )
    for t in (-1.0, 999.5, 1000.0, 500.25, float("nan")):
        found[f"timestep {t}"] = refused(
            lambda t=t: model.model.diffusion_model(noise(), torch.full((2,), t), context=given[0][0][0].repeat(2, 1, 1))
        )
    cached = easycache.EasyCacheNode.execute(model, 10.0, 0.0, 1.0, False)[0]
    found["EasyCache"] = refused(lambda: sampled(cached, given, 12))

    folders = {"models": artifact.parent, "unet": artifact / "unet"}
    found["DiffusersLoader"] = refused(lambda: comfy.diffusers_load.load_diffusers(str(artifact), embedding_directory=None))
    weights = str(folders["unet"] / "diffusion_pytorch_model.safetensors")
    found["UNETLoader"] = refused(lambda: comfy.sd.load_diffusion_model(weights))
    found["CheckpointLoaderSimple"] = refused(lambda: comfy.sd.load_checkpoint_guess_config(weights)[0].model.diffusion_model)

    changed = scratch / "changed"
    for name in (
        "saeuron.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "text_encoder/model.safetensors", "text_encoder/config.json",
        "vae/diffusion_pytorch_model.safetensors", "vae/config.json", "edit/edit.safetensors",
    ):  # fmt: skip
        for part in (0.5, 0.98):
            shutil.copytree(artifact, changed, dirs_exist_ok=True)
            content = bytearray((changed / name).read_bytes())
            content[int(len(content) * part)] ^= 1
            (changed / name).write_bytes(content)

            def everything() -> None:
                opened = Artifact(changed)
                load_model(opened), load_clip(opened), load_vae(opened)

            found[f"a bit of {name} at {part}"] = refused(everything)
    found["the folder, unchanged"] = "loads" if load_model(Artifact(artifact)) else ""
    changed_model = load_model(Artifact(artifact))
    lora = {
        "lora_unet_output_blocks_1_1_proj_in.lora_up.weight": torch.randn(64, 2, 1, 1),
        "lora_unet_output_blocks_1_1_proj_in.lora_down.weight": torch.randn(2, 64, 1, 1),
    }
    found["verify a patched MODEL"] = refused(lambda: verify(comfy.sd.load_lora_for_models(changed_model, None, lora, 1.0, 0.0)[0]))
    found["verify a stock MODEL"] = refused(
        lambda: verify(comfy.model_patcher.ModelPatcher(plain.model, plain.load_device, plain.offload_device))
    )
    return found


def not_loaded(artifact: Path) -> str:
    """What is said of an artifact in shapes that ComfyUI lacks."""
    return refused(lambda: load_model(Artifact(artifact)))


CHECKS = {
    "golden": golden, "spoiled": spoiled, "components": components, "sampler": sampler, "heat": heat, "survives": survives, "fails_closed": fails_closed, "not_loaded": not_loaded,
}  # fmt: skip
