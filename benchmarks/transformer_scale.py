"""Time, memory and proof of transformers at their real size, with random weights: `python -m benchmarks.transformer_scale --help`.

Builds a pipeline folder whose transformer has the shape of SD3.5-medium or FLUX.1 (text encoders and autoencoder have the right widths and
few layers), written tensor by tensor in bfloat16 and in several files, an SAE and concept activations; then measures `saeuron-export
--precision fp16` as users run it, each stage in a process of its own:

    onnx         --format onnx, without a proof
    checkpoint   --format checkpoint, without a proof
    proof        both formats, and the proof up to the edited block (`--proof seam`)

Peak memory is the largest resident set, file pages included; GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.sd14_scale import folder_bytes, run, versions

CONCEPTS = ("alpha", "beta", "gamma")
FEATURES = 8
WORDS = ["a", "an", "image", "of", "picture", *CONCEPTS]
SHARD = 5 << 30
STAGES = {
    "onnx": ("--format", "onnx", "--no-validate"),
    "checkpoint": ("--format", "checkpoint", "--no-validate"),
    "proof": ("--format", "checkpoint,onnx"),
}
TARGETS = {"sd35": 7.0, "flux": 12.0}
"""shape → most GB"""
_FLUX = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
_SD35 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "sd35": {"kind": "sd3", "network": _SD35, "hookpoint": "transformer_blocks.4", "latents": 24576, "k": 32},
    "flux": {"kind": "flux", "network": _FLUX, "hookpoint": "transformer_blocks.2", "latents": 49152, "k": 16},
}


def network_of(shape: dict[str, Any]) -> Any:
    """The transformer, on torch's meta device."""
    import torch
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    with torch.device("meta"):
        return {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}[shape["kind"]](**shape["network"]).to(torch.bfloat16)


def write_random(network: Any, folder: Path) -> None:
    """Random weights as wide as a fresh network's, one tensor in memory at a time, in files of about `SHARD` bytes as diffusers names them."""
    import torch
    from safetensors.torch import save_file

    network.save_config(folder)
    pool = torch.randn(1 << 24)
    state = network.state_dict()
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in state.items():
        if size and size + value.nbytes > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.nbytes
    table = {}
    for number, names in enumerate(shards):
        file = f"diffusion_pytorch_model-{number + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            shape = state[name].shape
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.02
            start, count = int(torch.randint(1 << 20, ())), state[name].numel()
            values = pool[start:].repeat(-(-count // (len(pool) - start)))[:count] * scale
            tensors[name] = (
                (values + (1.0 if "norm" in name and name.endswith("weight") and len(shape) == 1 else 0.0))
                .reshape(shape)
                .to(torch.bfloat16)
            )
            table[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    total = sum(value.nbytes for value in state.values())
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": table})
    )


def build(work: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """Write pipeline, SAE and activations."""
    import torch
    import torch.nn.functional as F
    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

    from saeuron.editor.denoisers.denoiser import Text
    from saeuron.editor.denoisers.families import denoiser_of, family_of
    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.denoisers.sampling import initial_latents, tokens_up_to
    from saeuron.editor.features.activations import ConceptActivations
    from saeuron.editor.sae.formats.config import SaeConfig, SaeFile
    from saeuron.editor.sae.sae import SparseAutoencoder

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    make_tokenizer(work / "tokenizer")
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=24)
    pieces = sorted({f"▁{w}" for w in WORDS} | {c for w in WORDS for c in w} | {"▁", "."})
    t5_words = T5TokenizerFast(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((p, -1.0 - 0.01 * i) for i, p in enumerate(pieces))],
        extra_ids=4,
        model_max_length=32,
    )
    ids = {f"{n}_token_id": getattr(words, f"{n}_token_id") for n in ("bos", "eos", "pad")}

    def clip(width: int, cls: Any) -> Any:
        return cls(CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, projection_dim=width,
            max_position_embeddings=24, **ids,
        )).to(torch.bfloat16)  # fmt: skip

    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_words) + 5, d_model=4096, d_kv=16, d_ff=256, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )).to(torch.bfloat16)  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16,
        scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    ).to(torch.bfloat16)  # fmt: skip
    network = network_of(shape)
    if shape["kind"] == "sd3":
        pipeline = StableDiffusion3Pipeline(
            transformer=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=clip(768, CLIPTextModelWithProjection),
            tokenizer=words, text_encoder_2=clip(1280, CLIPTextModelWithProjection), tokenizer_2=words, text_encoder_3=t5, tokenizer_3=t5_words,
        )  # fmt: skip
    else:
        pipeline = FluxPipeline(
            transformer=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=vae,
            text_encoder=clip(768, CLIPTextModel), tokenizer=words, text_encoder_2=t5, tokenizer_2=t5_words,
        )  # fmt: skip
    pipeline.save_pretrained(work / "model")
    index = json.loads((work / "model" / "model_index.json").read_text())
    index["transformer"] = ["diffusers", type(network).__name__]
    (work / "model" / "model_index.json").write_text(json.dumps(index, indent=2))
    write_random(network, work / "model" / "transformer")
    parameters = sum(p.numel() for p in network.parameters())
    del network, pipeline, t5

    # Tokens that a forward gives, to see which latents fire.
    pipeline = load_pipeline(str(work / "model"), torch.bfloat16)
    denoiser, hookpoint = denoiser_of(pipeline.transformer), shape["hookpoint"]
    latents = initial_latents(pipeline, [0], 64, 64)
    tokens = family_of(pipeline).text_tokens(pipeline)
    config = pipeline.transformer.config
    text = Text(torch.randn(1, tokens, config.joint_attention_dim).bfloat16(), torch.randn(1, config.pooled_projection_dim).bfloat16())

    fed = denoiser.fed(config, latents, torch.tensor([500.0]), text, 3.5)
    width = shape["network"]["num_attention_heads"] * shape["network"]["attention_head_dim"]
    seen = tokens_up_to(pipeline.transformer, [hookpoint], fed).reshape(1, -1, width).float()
    steps = _timesteps(pipeline, work)
    n = shape["latents"]
    rows = F.normalize(torch.randn(n, width), dim=1)
    tensors = {"W_enc": rows, "b_enc": torch.zeros(n), "W_dec": rows.clone(), "b_dec": seen.mean((0, 1))}
    sae = SparseAutoencoder.from_file(SaeFile(SaeConfig(width, n, shape["k"]), tensors, "random"))
    sae.save(work / "sae" / f"transformer.{hookpoint}", torch.bfloat16)
    sae = SparseAutoencoder.load(work / "sae", hookpoint)
    top = sae.top(sae.latents(seen))
    often = torch.bincount(top.indices.flatten(), minlength=n).topk(FEATURES * len(CONCEPTS)).indices
    level = 0.2 * float(top.values.mean())
    means = 1e-4 * level * torch.rand(len(CONCEPTS), len(steps), n)
    for number in range(len(CONCEPTS)):
        means[number, :, often[number :: len(CONCEPTS)]] = level
    provenance = {"hookpoint": hookpoint, "sae_sha256": sae.sha256(), "prompts": {name: [f"a picture of {name}"] for name in CONCEPTS}}
    ConceptActivations(list(CONCEPTS), [1] * len(CONCEPTS), means, steps, None, provenance).save(work / "activations.safetensors")
    return {"millions": parameters / 1e6, "bytes": folder_bytes(work / "model" / "transformer")}


def _timesteps(pipeline: Any, work: Path) -> Any:
    """Noise levels of eight steps."""
    from saeuron.editor.denoisers.families import telling_in

    pipeline.scheduler.set_timesteps(8, **telling_in(work / "model", pipeline.scheduler, 64, 64)(8))
    return pipeline.scheduler.timesteps.float()


def measure(stage: str, work: Path, shape: str, precision: str) -> dict[str, Any]:
    """One stage, in a process of its own."""
    log, output = work / f"{stage}.log", work / f"{stage}-output"
    log.unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    options = [
        "export", "--concepts", CONCEPTS[0], "--output", str(output), "--model", str(work / "model"), "--sae", str(work / "sae"),
        "--hookpoint", SHAPES[shape]["hookpoint"], "--activations", str(work / "activations.safetensors"), "--select", f"count:{FEATURES}",
        "--multiplier", "-5", "--steps", "4", "--guidance", "3.5", "--height", "64", "--width", "64", "--precision", precision, "--proof", "seam",
        *STAGES[stage], "--json",
    ]  # fmt: skip
    found = run([sys.executable, "-W", "ignore", "-m", "saeuron.export.cli", *options], log)
    if output.exists():
        found["bytes"] = folder_bytes(output)
        report = output / "validation" / "report.json"
        found["proof"] = json.loads(report.read_text()) if report.is_file() else None
        shutil.rmtree(output)
    if found["exit"]:
        found["log"] = log.read_text(errors="replace")[-2000:]
    return found


def main() -> None:
    """Build what is missing, run the stages, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for model, SAE and outputs; used again if there")
    parser.add_argument("--shape", choices=SHAPES, default="sd35")
    parser.add_argument("--layers", type=int, help="a cut of depth, with the same widths")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {','.join(STAGES)}")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--output", type=Path, help="JSON with every figure")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape, work = SHAPES[options.shape], options.work.absolute()
    if options.layers:
        cut = {"num_layers": options.layers} | ({"num_single_layers": 2 * options.layers} if shape["kind"] == "flux" else {})
        more = {"dual_attention_layers": tuple(range(options.layers))} if shape["kind"] == "sd3" else {}
        shape = {**shape, "network": {**shape["network"], **cut, **more}, "hookpoint": f"transformer_blocks.{options.layers // 2}"}
        SHAPES[options.shape] = shape
    if options.child:
        (work / "built.json").write_text(json.dumps(build(work, shape)))
        return
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "built.json").exists():
        more = ["--layers", str(options.layers)] if options.layers else []
        made = run([sys.executable, "-W", "ignore", "-m", "benchmarks.transformer_scale", "--work", str(work), "--shape", options.shape, "--child", *more], work / "build.log")  # fmt: skip
        print(f"build: {made['seconds']:.0f} s, peak {made['peak_gb']:.2f} GB", flush=True)
        if made["exit"]:
            sys.exit((work / "build.log").read_text(errors="replace")[-2000:])
    built = json.loads((work / "built.json").read_text())
    print(f"{options.shape}: {built['millions']:.0f} M parameters, {built['bytes'] / 1e9:.1f} GB on disk", flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    results: dict[str, Any] = {"shape": options.shape, "built": built, "machine": machine, "versions": versions(), "stages": {}}
    for stage in options.stages.split(","):
        results["stages"][stage] = r = measure(stage, work, options.shape, options.precision)
        target = (
            ""
            if options.layers
            else f" ({'met' if r['peak_gb'] <= TARGETS[options.shape] else 'MISSED'}: <= {TARGETS[options.shape]:g} GB)"
        )
        proof = r.get("proof") or {}
        verdict = f", proof {'passed' if proof['passed'] else 'FAILED'}" if proof else ""
        print(
            f"{stage}: {r['seconds']:.0f} s, peak {r['peak_gb']:.2f} GB{target}, {r.get('bytes', 0) / 1e9:.1f} GB written, exit {r['exit']}{verdict}",
            flush=True,
        )
        for name, backend in proof.get("backends", {}).items():
            seam, forwards = backend["seam"], backend["forwards"]
            worst = {key: f"{seam[key]['worst']:.1e}" for key in ("golden_tokens", "own_tokens") if seam.get(key)}
            print(
                f"   {name}: seam {worst}, {forwards['forwards']} forwards to the edited block, {forwards['pooled']} of the effect",
                flush=True,
            )
        if r["exit"]:
            print(r.get("log", ""), flush=True)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
