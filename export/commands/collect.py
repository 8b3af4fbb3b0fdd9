"""`saeuron collect`: concept activations as a file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.names import at_hookpoint, file_of
from ...editor.common.suggest import unknown
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.features.concepts import KINDS
from ...editor.features.named import ConceptWords, known_concepts
from ...editor.features.prompt_sets import check_sets, own_prompts
from ..plan.folder import check_files
from ..plan.resolve import check_sources
from ..plan.settings import Settings
from . import options as o
from .console import progress_line, resumable, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...editor.sae.sae import SparseAutoencoder


@command
@resumable
def collect(
    wanted: Annotated[Settings, only("concepts", "kind", "instead", "preset_files", "model", "variant", "hookpoint", "sae", "device", "overwrite")],
    sampling: Annotated[Sampling, only("seed", "batch_size", "height", "width", "scheduler")],
    used: o.Precision,
    prompts: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Instead of --concepts: TOML with a [prompts] table (name = [texts]), or NAME=FILE.txt with one prompt a line; repeatable.", rich_help_panel=o.WHAT)] = None,
    domain: Annotated[str, typer.Option(metavar="NAME", help="With --prompts: what the file says they are.", rich_help_panel=o.WHAT)] = "own",
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps. Default: the preset's, else 100.", rich_help_panel=o.HOW)] = None,
    guidance: Annotated[float | None, typer.Option(metavar="SCALE", help="Guidance scale. Default: the preset's, else 9.", rich_help_panel=o.HOW)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="PATH", help="File (.safetensors); for several hookpoints a folder, one file each.", rich_help_panel=o.OUTPUT)] = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Collect concept activations: run the unedited model on prompts and average an SAE's latents, by concept and step.

    A concept is collected with its whole domain, since choosing features means comparing. Memory does not grow with the number of
    prompts. Killed, the same command goes on where it stopped. Several processes share the work and write the same file:
    `torchrun --nproc_per_node 2 -m saeuron collect …`

    Example: `saeuron collect --concepts Neon --output style.safetensors`
    """
    sets, found = _sets(wanted, prompts or [])
    check_sets(sets)
    source = wanted.model or found.get("model")
    if not source:
        raise SaeuronError("no base model known: give --model DIR|HUB_ID|demo")
    where = wanted.hookpoint or found.get("hookpoint")
    if not where:
        raise SaeuronError("no hookpoint known: give --hookpoint NAME (SD 1.x: up_blocks.1.attentions.1)")
    hookpoints = o.hookpoints_of(where)
    saes = saes_at(wanted.sae or ([found["sae"]] if found.get("sae") else []), hookpoints)
    files = _files(output, hookpoints, wanted.overwrite)
    sampling = replace(
        sampling, steps=found.get("collect_steps", 100) if steps is None else steps,
        guidance=found.get("collect_guidance", 9.0) if guidance is None else guidance,
    )  # fmt: skip
    plan = {
        "model": source, "saes": saes, "domain": found.get("domain", domain), "sets": {n: len(p) for n, p in sets.items()}, "steps": sampling.steps,
        "guidance": sampling.guidance, "files": {h: str(p) for h, p in files.items()},
        "fetch": check_sources([("model", source), *(("SAE", s) for s in saes.values())]),
    }  # fmt: skip
    with progress_line("opening SAE" if dry_run else "starting") as say:
        if not (dry_run and plan["fetch"]):
            folder, opened = _open(source, wanted.variant, saes, sampling, sets)
        written = dry_run or _run(
            source, wanted.variant, folder, opened, sets, sampling, plan["domain"], used.precision, wanted.device, files, say
        )
    if written:
        _print(plan, as_json)


def _sets(wanted: Settings, files: list[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """Name → prompts, and what the presets say of the rest."""
    if bool(wanted.concepts) == bool(files):
        raise SaeuronError("give --concepts A,B (with presets, or with --kind) or --prompts FILE, one of the two")
    if files:
        if wanted.kind or wanted.instead:
            raise SaeuronError("--kind and --instead make prompts, and --prompts gives them; leave one out")
        return own_prompts(files), {}
    known = known_concepts(wanted.concepts, ConceptWords(wanted.kind, wanted.instead), wanted.model, wanted.preset_files)
    chosen = []
    for name in wanted.concepts:
        if name not in known:
            raise SaeuronError(
                unknown("concept", name, known) + f". For a concept without a preset give --kind {'|'.join(KINDS)}, or --prompts"
            )
        chosen.append(known[name])
    first = chosen[0]
    for other in chosen[1:]:
        if other.compared != first.compared:
            raise SaeuronError(
                f"'{first.name}' and '{other.name}' are of different domains ({first.domain}, {other.domain}); collect them one after the other"
            )
    if not all(first.compared.values()):
        raise SaeuronError(f"the presets of domain '{first.domain}' hold no prompts to collect from; give --prompts")
    hookpoints = dict.fromkeys(h.strip() for c in chosen for h in c.hookpoint.split(","))
    return dict(first.compared), {
        "model": first.model, "sae": first.sae, "hookpoint": ",".join(hookpoints), "domain": first.domain, "collect_steps": first.collect_steps,
        "collect_guidance": first.collect_guidance,
    }  # fmt: skip


def saes_at(given: Sequence[str], hookpoints: list[str]) -> dict[str, str]:
    """Hookpoint → source, from `--sae SOURCE` or `--sae HOOKPOINT=SOURCE`."""
    pairs = [at_hookpoint(text) for text in given]
    table = dict(pairs)
    if len(table) < len(pairs):
        raise SaeuronError("--sae is given twice for the same hookpoint; give one each, as HOOKPOINT=DIR|ID")
    for at in table:
        if at is not None and at not in hookpoints:
            raise SaeuronError(f"--sae {at}=…: this hookpoint is not used (used: {', '.join(hookpoints)})")
    found = {h: table.get(h) or table.get(None) for h in hookpoints}
    for name, source in found.items():
        if not source:
            raise SaeuronError(f"hookpoint '{name}': no SAE known; give --sae DIR|HUB_ID (or --sae {name}=DIR)")
    return {h: str(s) for h, s in found.items()}


def _files(output: Path | None, hookpoints: list[str], overwrite: bool) -> dict[str, Path]:
    if output is None:
        raise SaeuronError("no output: give --output FILE.safetensors (for several hookpoints a folder)")
    single = output.suffix == ".safetensors"
    if single and len(hookpoints) > 1:
        raise SaeuronError(f"--output '{output}' is one file, but there are {len(hookpoints)} hookpoints; give a folder")
    files = {h: output if single else output / f"{file_of(h)}.safetensors" for h in hookpoints}
    if not single:
        if output.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".json"):
            raise SaeuronError(f"--output '{output}': activations are written as .safetensors; give such a file, or a folder")
        o.out_folder(output)
    check_files(list(files.values()), overwrite)
    return files


def _open(
    model: str, variant: str | None, sources: dict[str, str], sampling: Sampling, sets: dict[str, tuple[str, ...]]
) -> tuple[Path, dict[str, SparseAutoencoder]]:  # fmt: skip
    """The model's folder, checked, and the SAEs, each checked against its block."""
    from ...editor.denoisers.pipelines import check_prompts, open_folder
    from ...editor.features.collect import check_sampling
    from ..plan.open import open_saes

    folder = open_folder(model, None, variant, (sampling.height, sampling.width))
    check_sampling(folder, sampling)
    check_prompts(folder, {f"'{name}'": prompts for name, prompts in sets.items()})
    return folder, open_saes(folder, sources)


def _run(
    model: str, variant: str | None, folder: Path, opened: dict[str, SparseAutoencoder], sets: dict[str, tuple[str, ...]], sampling: Sampling,
    domain: str, precision: str, device: str, files: dict[str, Path], say: Any,
) -> bool:  # fmt: skip
    """Collect and write; False in every process but the first."""
    from accelerate import PartialState

    from ...editor.common.names import dtype_of
    from ...editor.common.writing import alone
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import check_device, load_pipeline
    from ...editor.edit.bake import refuse_edited
    from ...editor.features import cache
    from ...editor.features.collect import METHOD, Process, clear
    from ...editor.features.collect import collect as run
    from ...editor.features.collecting import put
    from ..plan.progress import Remaining

    check_device(device)
    everyone = PartialState(cpu=device == "cpu")
    say(f"loading {model}")
    pipeline = load_pipeline(model, dtype_of(precision), str(everyone.device) if device == "cuda" else device, variant=variant)
    refuse_edited(network_of(pipeline))
    identity = cache.model_sha256(folder, variant=variant)
    job = cache.key(
        model=identity, saes={h: s.sha256() for h, s in opened.items()}, sampling=vars(sampling), precision=precision, method=METHOD,
        sets=[[n, list(p)] for n, p in sets.items()],
    )  # fmt: skip
    first = next(iter(files.values()))
    state = first.parent / f".{first.stem}.collecting-{job[:12]}"
    clock = Remaining()

    def progress(done: int, total: int, concept: str) -> None:
        if everyone.is_main_process:
            share = f" (process 1 of {everyone.num_processes})" if everyone.num_processes > 1 else ""
            say(f"collecting: {done} of {total} prompts{share}{clock.text(done, total)}{f', {concept}' if concept else ''}")

    process = Process(everyone.process_index, everyone.num_processes, everyone.wait_for_everyone)
    record = {"domain": domain, "model": model, "model_sha256": identity, "precision": precision}
    busy = f"another process is collecting the same into '{first}'; wait until it has ended"
    with alone(state, busy) if process.rank == 0 else contextlib.nullcontext():
        found = run(pipeline, opened, sets, sampling, record, state, process, progress=progress)
        for hookpoint, activations in (found or {}).items():
            put(activations, files[hookpoint])
        if process.rank == 0:
            clear(state)
    return found is not None


def _print(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(plan)
        return
    tell(f"model      {plan['model']}")
    for name, count in plan["sets"].items():
        tell(f"prompts    {name}: {count}")
    tell(f"sampling   {plan['steps']} steps, guidance {plan['guidance']:g}")
    for name in plan["fetch"]:
        tell(f"to fetch   {name}; its parts can't be checked before")
    for hookpoint, path in plan["files"].items():
        tell(f"file       {path} ({hookpoint}, SAE {plan['saes'][hookpoint]})")
