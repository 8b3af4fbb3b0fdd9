"""Time, memory and proof at the size of Stable Diffusion 1.4, with random weights: `python -m benchmarks.sd14_scale --help`.

Builds the pipeline (UNet 860 M, text encoder 123 M, autoencoder 83.7 M parameters), an SAE of 20480 latents and concept
activations as local folders, then measures each stage in a process of its own:

    stock     the unedited UNet by a plain `torch.onnx.export(dynamo=True)`: what this machine needs today, whoever asks
    unet      bake the edit and export the UNet alone
    pipeline  the same for all four graphs, by the calls that `saeuron-export` makes
    proof     a few forwards of the exported UNet against the dynamic hook (scope "short")
    engines   all four graphs in fp16, then TensorRT for RTX engines of them for sm86 and sm89 (needs the extra rtx; not in the default set)
    bench     the hook and every gate beside the unedited UNet, as `saeuron bench` times them (not in the default set)
    command   `saeuron-export --format onnx --proof short` as users run it (not in the default set)
    optimum   `optimum-cli export onnx` of the same folder, by the environment of --optimum

Peak memory is the largest resident set (file pages included) while a phase runs; GB are 10^9 bytes. A stage's `cpu` far
below `seconds` times the cores says that other processes competed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeuron.editor.common.names import dtype_of
from saeuron.editor.sae.formats.config import SaeFile

HOOKPOINT = "up_blocks.1.attentions.1"
CONCEPTS = ("alpha", "beta", "gamma")
FEATURES = 8  # chosen latents a concept
TARGETS = {"unet": (60.0, 5.0), "pipeline": (120.0, 6.0)}
"""stage → most seconds (after loading), most GB (loading included)"""
STAGES = ("stock", "unet", "pipeline", "proof", "engines", "bench", "command", "optimum")
TOKENS = 77
SIZES: dict[str, dict[str, Any]] = {
    "sd14": {
        "unet": (320, 640, 1280, 1280),
        "sample": 64,
        "text": 768,
        "layers": 12,
        "heads": 12,
        "vocabulary": 49408,
        "vae": (128, 256, 512, 512),
        "latents": 20480,
        "k": 32,
    },
    "tiny": {
        "unet": (32, 64, 64, 64),
        "sample": 16,
        "text": 64,
        "layers": 2,
        "heads": 4,
        "vocabulary": 4096,
        "vae": (32, 32, 64, 64),
        "latents": 1024,
        "k": 16,
    },
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def peak_gb(reset: bool = False) -> float:
    """Largest resident set of this process; `reset` starts anew where the kernel allows it (Linux)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return peak


class Meter:
    """Collects time and peak memory of the phases of one stage."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block."""
        peak_gb(reset=True)
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.phases[name] = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak_gb": peak_gb()}
        print(f"   {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in self.phases[name].items()), file=sys.stderr, flush=True)

    def result(self, *without: str) -> dict[str, Any]:
        """Totals: time of all phases but `without`, memory of all."""
        counted = [p for n, p in self.phases.items() if n not in without]
        peaks = [p["peak_gb"] for p in self.phases.values()]
        return {
            "seconds": sum(p["seconds"] for p in counted),
            "cpu": sum(p["cpu"] for p in counted),
            "peak_gb": max(peaks),
            "phases": self.phases,
        }


# -- the stages, each in a process of its own --------------------------------------------------------------------------


def build(work: Path, size: dict[str, Any]) -> dict[str, Any]:
    """Write pipeline, SAE and activations."""
    import torch
    import torch.nn.functional as F
    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from saeuron.editor.denoisers.sampling import capture
    from saeuron.editor.features.activations import ConceptActivations, ddim_timesteps
    from saeuron.editor.sae.formats.config import SaeConfig
    from saeuron.editor.sae.sae import SparseAutoencoder

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    make_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=TOKENS)
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=size["vocabulary"], hidden_size=size["text"], intermediate_size=4 * size["text"], projection_dim=size["text"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"], max_position_embeddings=TOKENS, **ids,
    ))  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=size["vae"], layers_per_block=2, sample_size=8 * size["sample"],
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    # The other settings of SD 1.4's UNet are this class's defaults.
    unet = UNet2DConditionModel(
        sample_size=size["sample"], block_out_channels=size["unet"], cross_attention_dim=size["text"], attention_head_dim=8
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(work / "model")
    for name in ("vocab.json", "merges.txt"):  # read by older transformers, for the stage `optimum`
        shutil.copyfile(work / "tokenizer" / name, work / "model" / "tokenizer" / name)

    width, latents = size["unet"][2], size["latents"]
    rows = F.normalize(torch.randn(latents, width), dim=1)
    with capture(unet, [HOOKPOINT]) as seen:
        unet(torch.randn(1, 4, size["sample"], size["sample"]), 501, torch.randn(1, TOKENS, size["text"]))
    tokens = seen[0].outputs[HOOKPOINT]
    tensors = {"W_enc": rows, "b_enc": torch.zeros(latents), "W_dec": rows.clone(), "b_dec": tokens.mean((0, 1))}
    sae = SparseAutoencoder.from_file(SaeFile(SaeConfig(width, latents, size["k"]), tensors, "random"))
    sae.save(work / "sae" / f"unet.{HOOKPOINT}")

    # Each concept owns latents that random inputs put into the top k, with means far below the latents' own values.
    top = sae.top(sae.latents(tokens))
    often = torch.bincount(top.indices.flatten(), minlength=latents).topk(FEATURES * len(CONCEPTS)).indices
    steps = ddim_timesteps(scheduler.config, 50)
    level = 0.2 * float(top.values.mean())
    means = 1e-4 * level * torch.rand(len(CONCEPTS), len(steps), latents)
    for number in range(len(CONCEPTS)):
        means[number, :, often[number :: len(CONCEPTS)]] = level * torch.linspace(0.5, 1.5, len(steps))[:, None]
    prompts = {name: [f"An image of {name}."] for name in CONCEPTS}
    provenance = {"hookpoint": HOOKPOINT, "sae_sha256": sae.sha256(), "prompts": prompts}
    ConceptActivations(list(CONCEPTS), [1] * len(CONCEPTS), means, steps, None, provenance).save(work / "activations.safetensors")
    return {
        f"{n}_millions": sum(p.numel() for p in m.parameters()) / 1e6 for n, m in (("unet", unet), ("text_encoder", text), ("vae", vae))
    }


def settings(work: Path, output: Path) -> Any:
    """What `saeuron-export` would be told."""
    from saeuron.export.plan.settings import Settings

    return Settings(
        CONCEPTS[:2], output, ("onnx",), str(work / "model"), (str(work / "sae"),), HOOKPOINT, (str(work / "activations.safetensors"),),
        select=f"count:{FEATURES}", multiplier=-1.0, steps=50, guidance=7.5, proof="short",
    )  # fmt: skip


def prepared(work: Path) -> Any:
    """SAE, activations and Edit, opened as `saeuron-export` opens them."""
    from saeuron.export.plan.prepare import prepare
    from saeuron.export.plan.resolve import resolve

    return prepare(resolve(settings(work, work / "artifact")))


def stage_stock(work: Path) -> dict[str, Any]:
    """The exporter as its documentation shows it, same axes dynamic as ours."""
    import torch
    from diffusers import UNet2DConditionModel

    from saeuron.export.formats import onnx

    meter, model, output = Meter(), work / "model", work / "unet-stock"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with meter.phase("load"):
        unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
        part = onnx.denoiser_component(unet, TOKENS)
    with meter.phase("unet"), torch.no_grad():
        given, shapes = part.arguments()
        program = torch.onnx.export(
            part.module.eval(), kwargs=given, dynamo=True, opset_version=onnx.OPSET, dynamic_shapes=shapes, input_names=list(part.inputs),
            output_names=list(part.outputs), verbose=False,
        )  # fmt: skip
        program.save(str(output / "model.onnx"), external_data=True)
    return meter.result("load") | {"bytes": folder_bytes(output)}


def stage_unet(work: Path) -> dict[str, Any]:
    """Bake and export the UNet; text encoder and autoencoder are there without memory."""
    from types import SimpleNamespace

    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from saeuron.editor.edit.bake import bake
    from saeuron.export.formats import onnx

    meter, model, output = Meter(), work / "model", work / "unet-alone"
    shutil.rmtree(output, ignore_errors=True)
    with meter.phase("load"):
        ready = prepared(work)
        with torch.device("meta"):
            text, vae = (
                CLIPTextModel(CLIPTextConfig.from_pretrained(model / "text_encoder")),
                AutoencoderKL.from_config(AutoencoderKL.load_config(model / "vae")),
            )
        pipeline = SimpleNamespace(
            unet=UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32),
            text_encoder=text,
            vae=vae,
            vae_scale_factor=8,
        )
    with meter.phase("bake"):
        pipeline.unet = bake(pipeline.unet, ready.edit, ready.saes)
        ready.saes.clear()
    with meter.phase("unet"):
        onnx.write(onnx.denoiser_component(pipeline.unet, TOKENS), output)
    return meter.result("load") | {"bytes": folder_bytes(output)}


def stage_bench(work: Path) -> dict[str, Any]:
    """What the edit costs at run time, in torch and ONNX Runtime."""
    from diffusers import UNet2DConditionModel

    from saeuron.export.bench.bench import bench

    meter = Meter()
    with meter.phase("load"):
        ready = prepared(work)
        unet = UNet2DConditionModel.from_pretrained(work / "model" / "unet").eval()
    with meter.phase("bench"):
        found = bench(unet, ready.edit, ready.saes, ("torch", "onnx"), (unet.config.sample_size,) * 2, TOKENS)
    return meter.result("load") | {"bench": found}


def _graphs(work: Path, output: Path, precision: str, meter: Meter) -> dict[str, str]:
    """What `saeuron-export --format onnx` does between its reference and its proof; the names of the seams' tensors."""
    import gc

    from saeuron.editor.common.files import read_json
    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.edit.bake import bake
    from saeuron.export.formats import checkpoint, onnx

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with meter.phase("load"):
        ready = prepared(work)
        pipeline = load_pipeline(str(work / "model"), dtype_of(precision))
    with meter.phase("bake"):
        edited = checkpoint.edited_pipeline(pipeline, bake(pipeline.unet, ready.edit, ready.saes))
        pipeline.unet = None
        ready.saes.clear()
    with meter.phase("configs"):
        checkpoint.write(edited, output, read_json(ready.model_folder / "model_index.json"), weights=False)
    seams: dict[str, dict[str, str]] = {}
    parts = onnx.components(edited)
    pipeline.vae = pipeline.text_encoder = None
    del edited
    while parts:
        with meter.phase(parts[0].folder):
            seams |= onnx.write(parts.pop(0), output)
            gc.collect()
    return seams


def stage_pipeline(work: Path) -> dict[str, Any]:
    """All four graphs in fp32."""
    from saeuron.editor.common.typed import read_as
    from saeuron.export.formats import onnx
    from saeuron.validation.artifact import contents, manifest

    meter, output = Meter(), work / "artifact"
    seams = _graphs(work, output, "fp32", meter)
    result = meter.result("load") | {"bytes": folder_bytes(output)}
    # Only what the runner of the graphs reads has a meaning here.
    said = {
        "format": manifest.FORMAT, "onnx": {"opset": onnx.OPSET, "seams": seams}, "formats": ["onnx"], "concepts": [], "residual": "keep", "gate": "exact", "precision": "fp32", "warnings": [], "settings": [], "saes": {},
        "activations": [], "model": {"source": "random", "pipeline": "StableDiffusionPipeline", "network_sha256": "", "safety_checker": False},
        "edit": {"sha256": "", "tensors_sha256": ""}, "sampling": {"steps": 50, "guidance": 7.5, "height": None, "width": None},
    }  # fmt: skip
    contents.write(output, read_as(manifest.Manifest, said, output))
    return result


def stage_engines(work: Path) -> dict[str, Any]:
    """All four graphs in fp16, and engines of three of them; the builder's own memory is in its own process."""
    import gc

    from saeuron.export.formats import tensorrt
    from saeuron.validation.artifact.engines import Target

    meter, output = Meter(), work / "artifact-fp16"
    _graphs(work, output, "fp16", meter)
    gc.collect()
    wanted = tensorrt.EngineSettings(targets=(Target.parse("rtx:sm86,sm89"),))
    record = {"precision": "fp16", "sampling": {"height": None, "width": None, "guidance": 7.5}}
    with meter.phase("engines"):
        built = tensorrt.write(output, record, wanted, tensorrt.ready(wanted))
    names = ("load", "bake", "configs", "text_encoder", "unet", "vae_decoder", "vae_encoder")
    (entry,) = built.values()
    kept = ("seconds", "peak_bytes", "bytes", "shapes", "types")
    engines = {name: {key: part[key] for key in kept} for name, part in entry["components"].items()}
    return meter.result(*names) | {"builder": f"{entry['module']} {entry['version']}", "engines": engines}


def stage_proof(work: Path) -> dict[str, Any]:
    """Golden vectors by the dynamic hook, then the forwards of the exported UNet in ONNX Runtime."""
    import gc

    import torch

    from saeuron.editor.common.typed import plain
    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.edit.hook import TokenEdit
    from saeuron.validation.backends.onnx_runner import OnnxRunner
    from saeuron.validation.proof.parity import check_control, check_network
    from saeuron.validation.proof.reference import make_golden
    from saeuron.validation.proof.seam_reference import on_tokens

    meter = Meter()
    with meter.phase("load"):
        ready, pipeline = prepared(work), load_pipeline(str(work / "model"))
    with meter.phase("golden"):
        golden = make_golden(pipeline, ready.edit, ready.saes, ready.prompts, 50, 7.5, "fp32", scope="short")
    reference = on_tokens(TokenEdit(ready.edit, ready.saes, torch.float32))
    del ready, pipeline
    gc.collect()
    runner = OnnxRunner(work / "artifact")
    with meter.phase("session"):
        runner.session("unet")
    with meter.phase("forwards"):
        found = plain(check_network(golden, runner, reference)._asdict())
    fired = sum(int(f.sum()) for c in golden.cases for f in c.fires.values())
    return meter.result("load") | {
        **found,
        "control": plain(check_control(golden)),
        "fired": fired,
        "decisions": sum(f.size for c in golden.cases for f in c.fires.values()),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


# -- the parent: imports neither torch nor diffusers, since a child's peak starts from its parent's --------------------


def run(command: list[str], log: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a process to its end; its time and the largest resident set of it and its children."""
    start, load = time.perf_counter(), os.getloadavg()
    with log.open("ab") as handle:
        child = subprocess.Popen(command, stdout=handle, stderr=handle, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "exit": child.returncode, "seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss * unit / 1e9,
        "load_before": load, "load_after": os.getloadavg(),
    }  # fmt: skip


def measure(stage: str, work: Path, size: str, optimum: Path | None) -> dict[str, Any]:
    """One stage; `process` holds the figures of the whole process, start of Python and loading included."""
    log, answer, output = work / f"{stage}.log", work / f"{stage}.json", work / f"{stage}-output"
    for path in (log, answer):
        path.unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    if stage == "command":
        options = [
            "export", "--concepts", ",".join(CONCEPTS[:2]), "--format", "onnx", "--output", str(output), "--model", str(work / "model"),
            "--sae", str(work / "sae"), "--hookpoint", HOOKPOINT, "--activations", str(work / "activations.safetensors"),
            "--select", f"count:{FEATURES}", "--multiplier", "-1", "--steps", "50", "--proof", "short", "--json",
        ]  # fmt: skip
        process = run([sys.executable, "-W", "ignore", "-m", "saeuron.export.cli", *options], log)
    elif stage == "optimum":
        if optimum is None:
            return {"skipped": "no --optimum given"}
        process = run(
            [str(optimum), "export", "onnx", "--task", "text-to-image", "--model", str(work / "model"), str(output)],
            log,
            {"HF_HUB_OFFLINE": "1"},
        )
    else:
        process = run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.sd14_scale", "--work", str(work), "--size", size, "--child", stage],
            log,
            {"HF_HUB_OFFLINE": "1"},
        )
    if process["exit"]:
        return {"failed": process["exit"], "log": log.read_text(errors="replace")[-2000:]}
    result = json.loads(answer.read_text()) if answer.exists() else {k: process[k] for k in ("seconds", "cpu", "peak_gb")}
    if output.exists():
        result["bytes"] = folder_bytes(output)
        shutil.rmtree(output)
    process["peak_gb"] = max(process["peak_gb"], result.get("peak_gb", 0.0))  # resets within the child lower what its parent sees
    return result | {"process": process}


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Size of Stable Diffusion 1.4" if results["size"] == "sd14" else "Tiny", title_justify="left")
    for column in ("stage", "seconds", "cpu", "peak GB", "whole process", "target", "notes"):
        table.add_column(column, overflow="fold")
    for name, r in results["stages"].items():
        if "seconds" not in r:
            table.add_row(name, *["–"] * 5, str(r.get("skipped") or f"failed with {r['failed']}, see JSON"))
            continue
        seconds, memory = TARGETS.get(name, (None, None))
        stock = results["stages"].get("stock", {}).get("seconds")
        met = (
            ""
            if seconds is None
            else f"{'met' if r['seconds'] <= seconds and r['process']['peak_gb'] <= memory else 'MISSED'} (≤ {seconds:g} s, ≤ {memory:g} GB)"
        )
        notes = "; ".join(f"{n} {p['seconds']:.1f} s, {p['peak_gb']:.2f} GB" for n, p in r.get("phases", {}).items())
        if stock and name == "unet":
            notes = f"{r['seconds'] / stock:.2f} times the stock UNet's plain export; {notes}"
        if "forwards" in r:
            f, verdict = r["forwards"], "pass" if r["forwards"]["passed"] and r["seam"]["passed"] and r["control"]["passed"] else "FAIL"
            notes = f"{verdict}: seam {r['seam']['own_tokens']['worst']:.1e}, forwards {f['pooled']:.4%} of the effect, {f['forwards']} forwards, {f['fired']} with the edit firing; {notes}"
        for row in r.get("bench", {}).get("rows", ()):
            notes += f"; {row['backend']} {row['variant']}: {row['seconds'] * 1e3:,.4g} ms, {row['ratio']:.3%}"
        for part, e in r.get("engines", {}).items():
            memory = "" if e["peak_bytes"] is None else f", peak {e['peak_bytes'] / 1e9:.2f} GB"
            notes += f"; engine {part}: {e['seconds']:.1f} s{memory}, {e['bytes'] / 1e9:.2f} GB on disk"
        table.add_row(
            name,
            f"{r['seconds']:.1f}",
            f"{r['cpu']:.1f}",
            f"{r['peak_gb']:.2f}",
            f"{r['process']['seconds']:.1f} s, {r['process']['peak_gb']:.2f} GB",
            met,
            notes,
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def main() -> None:
    """Build what is missing, run the stages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for model, SAE and outputs (about 15 GB); model and SAE are used again if there"
    )
    parser.add_argument("--size", choices=SIZES, default="sd14", help="tiny tries the script itself in a minute")
    parser.add_argument(
        "--stages",
        default="stock,unet,pipeline,proof,optimum",
        help=f"comma-separated, of {','.join(STAGES)}; proof needs the output of pipeline",
    )
    parser.add_argument("--optimum", type=Path, help="path of an optimum-cli")
    parser.add_argument("--output", type=Path, help="JSON with every figure")
    parser.add_argument("--keep", action="store_true", help="keep the exported graphs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work, size = options.work.absolute(), options.size
    if options.child:
        stages = {
            "build": lambda: build(work, SIZES[size]),
            "stock": lambda: stage_stock(work),
            "unet": lambda: stage_unet(work),
            "pipeline": lambda: stage_pipeline(work),
            "bench": lambda: stage_bench(work),
            "proof": lambda: stage_proof(work),
            "engines": lambda: stage_engines(work),
        }
        (work / f"{options.child}.json").write_text(json.dumps(stages[options.child]()))
        return
    chosen = options.stages.split(",")
    if unknown := [s for s in chosen if s not in STAGES]:
        parser.error(f"unknown stage {unknown[0]}; known: {', '.join(STAGES)}")
    work.mkdir(parents=True, exist_ok=True)
    marker = work / "built.json"
    if not marker.exists() or json.loads(marker.read_text())["size"] != size:
        print("== build", file=sys.stderr, flush=True)
        built = measure("build", work, size, None)
        if "failed" in built:
            sys.exit(built["log"])
        marker.write_text(json.dumps({"size": size, **built}))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    machine = {"cores": os.cpu_count(), "memory_gb": memory, "python": platform.python_version(), "system": platform.system()}
    results: dict[str, Any] = {
        "size": size,
        "built": json.loads(marker.read_text()),
        "machine": machine,
        "versions": versions(),
        "stages": {},
    }
    for stage in chosen:
        print(f"== {stage}", file=sys.stderr, flush=True)
        results["stages"][stage] = measure(stage, work, size, options.optimum)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    if not options.keep:
        for name in ("unet-stock", "unet-alone", "artifact", "artifact-fp16"):
            shutil.rmtree(work / name, ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions of what is measured."""
    from importlib.metadata import version

    return {p: version(p) for p in ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")}


if __name__ == "__main__":
    main()
