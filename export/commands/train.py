"""`saeuron train`: SAEs on the activations of a running pipeline. Its options are the fields of `TrainSettings`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ...editor.common.errors import SaeuronError, first_line
from ...editor.features.prompt_sets import lines_of
from ...editor.sae.train_settings import TrainSampling, TrainSettings
from . import options as o
from .console import print_warning, progress_line, resumable, tell, write_json
from .declared import command


@command
@resumable
def train(
    model: o.Model = None,
    variant: o.Variant = None,
    hookpoint: Annotated[str | None, typer.Option(metavar="NAME", help="Block, e.g. up_blocks.1.attentions.1 or transformer_blocks.12; several comma-separated, an SAE each.", rich_help_panel=o.WHERE)] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="Text file, one prompt a line; demo's own: demo:prompts.txt.", rich_help_panel=o.WHERE)] = None,
    *,
    sampling: TrainSampling,
    device: o.Device = "cpu",
    tracker: Annotated[list[str] | None, typer.Option(metavar="NAME", help="tensorboard or wandb (must be installed); repeatable.", rich_help_panel=o.OUTPUT)] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep activations here and use those found; default: none on disk.", rich_help_panel=o.OUTPUT)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="One folder a hookpoint, in SAeUron's form.", rich_help_panel=o.OUTPUT)] = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    settings: TrainSettings,
) -> None:  # fmt: skip
    """Train a sparse autoencoder on the activations of a running pipeline.

    Activations go through a buffer in memory, none to disk unless --cache is given. Killed, the same command goes on from the last
    checkpoint. Several processes train the same SAE, if --micro-batches is a multiple of their number:
    `torchrun --nproc_per_node 2 -m saeuron train …`

    Example, a minute on the demo: `saeuron train --model demo --hookpoint up_blocks.1.attentions.1 --prompts demo:prompts.txt
    --sampling-steps 20 --guidance 3 --tokens 400000 --output my-sae`
    """
    from ...editor.demo import path_of

    for value, name in ((model, "model"), (hookpoint, "hookpoint"), (prompts, "prompts"), (output, "output")):
        if not value:
            raise SaeuronError(f"--{name} is missing")
    assert model and hookpoint and prompts and output
    hookpoints = o.hookpoints_of(hookpoint)
    if prompts.endswith(".toml"):
        raise SaeuronError(f"prompts '{prompts}': train reads a text file with one prompt a line, not TOML")
    texts = lines_of(Path(path_of(prompts)))
    if not texts:
        raise SaeuronError(f"prompts '{prompts}': no line holds a prompt")
    if (output / "training.json").exists():
        raise SaeuronError(f"'{output}' holds a finished training; choose another --output")
    o.out_folder(output)
    if cache is not None:
        o.out_folder(cache)
    if settings.pictures % sampling.batch_size or settings.held_out % sampling.batch_size:
        raise SaeuronError(
            f"--pictures {settings.pictures} and --held-out {settings.held_out} must be multiples of --batch-size {sampling.batch_size}"
        )
    with progress_line("starting") as say:
        if dry_run:
            plan = _plan(model, variant, hookpoints, settings, sampling, len(texts))
        else:
            report = _run(model, variant, hookpoints, texts, settings, sampling, output, cache, device, tuple(tracker or ()), say)
    if dry_run:
        _print_plan(plan, as_json)
    elif report is not None:
        if as_json:
            write_json(report)
        else:
            _print(report, output)


def _plan(
    model: str, variant: str | None, hookpoints: list[str], settings: TrainSettings, sampling: TrainSampling, texts: int
) -> dict[str, Any]:
    from ...editor.denoisers.pipelines import open_folder
    from ...editor.features.collect import check_sampling
    from ...editor.sae.stream import buffer_bytes
    from ..plan.open import tokens_of

    folder = open_folder(model, None, variant, (sampling.height, sampling.width))
    check_sampling(folder, sampling)
    found: dict[str, Any] = {"model": model, "prompts": texts, "steps": settings.steps, "tokens": settings.steps * settings.batch}
    shapes = tokens_of(folder, hookpoints, sampling.height, sampling.width)
    _check_tokens(shapes, settings, sampling)
    for name, (tokens, width) in shapes.items():
        n = width * settings.expansion
        found[name] = f"{width} channels, {n} latents, {tokens} tokens a picture and step"
        found[f"{name} memory"] = (
            f"buffer {buffer_bytes(width, tokens, sampling.steps, settings.pictures) / 2**30:.2f} GiB, weights, gradients and Adam {_WEIGHT_BYTES * n * width / 2**30:.2f} GiB"
        )
    return found


_WEIGHT_BYTES = 4 * 4 * 2
"""a latent and channel: encoder and decoder, float32, each with its gradient and Adam's two moments"""


def _check_tokens(shapes: dict[str, tuple[int, int]], settings: TrainSettings, sampling: TrainSampling) -> None:
    """Raise where a block's size doesn't allow what is asked for; before the model is loaded."""
    import psutil  # comes with accelerate

    memory = psutil.virtual_memory().total
    needed = 0
    for name, (each, width) in shapes.items():
        latents = width * settings.expansion
        needed += _WEIGHT_BYTES * latents * width
        if settings.k > latents:
            raise SaeuronError(f"k = {settings.k} is larger than the {latents} latents at '{name}'")
        tokens = settings.pictures * sampling.steps * each
        # Another scheduler may call the UNet more often than there are steps.
        if sampling.scheduler == "ddim" and tokens < settings.batch:
            raise SaeuronError(
                f"a buffer of {settings.pictures} pictures holds {tokens} tokens at '{name}', fewer than one batch of {settings.batch}; raise --pictures"
            )
    if needed > memory:
        raise SaeuronError(
            f"weights, gradients and Adam need {needed / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f} GiB; lower --expansion"
        )


def _run(
    model: str, variant: str | None, hookpoints: list[str], texts: tuple[str, ...], settings: TrainSettings, sampling: TrainSampling, output: Path,
    cache: Path | None, device: str, trackers: tuple[str, ...], say: Any,
) -> dict[str, Any] | None:  # fmt: skip
    from accelerate import Accelerator

    from ...editor.common.names import dtype_of
    from ...editor.common.writing import alone
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import check_device, load_pipeline, open_folder
    from ...editor.edit.bake import refuse_edited
    from ...editor.features.cache import model_sha256
    from ...editor.features.collect import check_sampling
    from ...editor.sae.training import Trainer, TrainEvent
    from ..plan.open import tokens_of
    from ..plan.progress import Remaining

    check_device(device)
    folder = open_folder(model, None, variant, (sampling.height, sampling.width))
    check_sampling(folder, sampling)
    # Refuses a hookpoint that isn't there, and what doesn't fit it, before the model is loaded.
    _check_tokens(tokens_of(folder, hookpoints, sampling.height, sampling.width), settings, sampling)
    mixed = {"fp32": "no"}.get(settings.precision, settings.precision)
    try:
        accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu", log_with=list(trackers) or None, project_dir=str(output))
    except (ValueError, ImportError) as error:
        raise SaeuronError(f"training can't start: {first_line(error)}") from None
    say(f"loading {model}")
    pipeline = load_pipeline(model, dtype_of(settings.precision), str(accelerator.device) if device == "cuda" else device, variant=variant)
    refuse_edited(network_of(pipeline))
    trainer = Trainer(pipeline, hookpoints, texts, settings, sampling, output, accelerator, cache, model_sha256(folder, variant=variant))
    if trackers:
        accelerator.init_trackers("saeuron", config=asdict(settings))
    clock, first = Remaining(), 0
    if accelerator.is_main_process:
        trainer.filling = lambda what, done, total: say(f"{what}: {done} of {total} pictures")

    def progress(event: TrainEvent) -> None:
        nonlocal first
        first = first or event.step
        if accelerator.is_main_process and (event.step % 20 == 0 or event.step in (first, event.steps)):
            left = clock.text(event.step, event.steps)
            # Until a second buffer was made, its time isn't known.
            if event.step - first < event.per_buffer < event.steps - first:
                left = ""
            say(f"step {event.step} of {event.steps}{left}: {event.hookpoint} loss {event.loss:.4f}, {event.dead} dead")

    busy = f"another training writes into '{output}'; wait until it has ended"
    with alone(output, busy) if accelerator.is_main_process else contextlib.nullcontext():
        report = trainer.train(progress)
    if trackers:
        accelerator.end_training()
    return report


def _print_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(plan)
        return
    for name, value in plan.items():
        tell(f"{name:<10} {value}")


def _print(report: dict[str, Any], output: Path) -> None:
    for name, found in report["saes"].items():
        tell(
            f"{output / found['folder']}: FVU {found['fvu']:.4f}, explained variance {found['explained_variance']:.4f}, L0 {found['l0']:.1f}, dead {found['dead']:.1%} on held-out pictures"
        )
        rows = found["by_timestep"]
        for row in (rows[0], rows[len(rows) // 2], rows[-1]):
            tell(f"  t {row['timestep']:g}: FVU {row['fvu']:.4f}, L0 {row['l0']:.1f}, dead {row['dead']:.1%}")
        if found["dead"] > 0.5:
            print_warning(f"more than half of the latents at {name} never fire; train longer, or with a smaller expansion")
    tell(f"every timestep: {output / 'training.json'}")
