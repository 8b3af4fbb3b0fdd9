"""`saeuron features`: what single features answer to, as sheets of pictures with heat maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import lines_of
from ..plan.checks import check_pixels, check_scheduler, check_seed
from ..plan.folder import building, check_output
from . import options as o
from .by_feature import feature, sampling_of, sources_of
from .console import clean, names, out, print_warning, progress_line, write_json

if TYPE_CHECKING:
    from PIL import Image

    from ...editor.denoisers.sampling import Sampling
    from ...editor.features.feature_maps import FeatureRecord
    from ..plan.settings import Plan

MARKER = "features.json"


@clean
def features(
    numbers: Annotated[
        str, typer.Option("--features", metavar="N,M", help="Features, e.g. 296,157; HOOKPOINT:296 where there are several.", rich_help_panel=o.WHAT)
    ] = "",
    concepts: Annotated[
        str, typer.Option(metavar="A,B", help="Instead of --features: those that the presets' rules choose for these concepts.", rich_help_panel=o.WHAT)
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", help="With --concepts: most features a concept and hookpoint.", rich_help_panel=o.WHAT)] = 3,
    rule: Annotated[
        str | None,
        typer.Option("--select", metavar="RULE", help="With --concepts: percentile:P or count:N. Default: the preset's.", rich_help_panel=o.WHAT),
    ] = None,
    preset_file: o.PresetFiles = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Text file, one prompt a line; demo's own: demo:prompts.txt. Default with --concepts: those of the domain.", rich_help_panel=o.WHAT),
    ] = None,
    activations: o.Activations = None,
    model: o.Model = None,
    variant: o.Variant = None,
    hookpoint: o.Hookpoint = None,
    sae: o.Sae = None,
    pictures: Annotated[int, typer.Option(metavar="N", help="Pictures made in all; prompts are drawn at random.", rich_help_panel=o.HOW)] = 64,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps. Default: the preset's, else 50 (demo: 20).", rich_help_panel=o.HOW)] = None,
    guidance: Annotated[float | None, typer.Option(metavar="SCALE", help="Default: the preset's, else 7.5 (demo: 3).", rich_help_panel=o.HOW)] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts and noise.", rich_help_panel=o.HOW)] = 42,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures at a time.", rich_help_panel=o.HOW)] = 8,
    height: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    scheduler: Annotated[str, typer.Option(metavar="KIND", help="ddim, or model (the pipeline's own).", rich_help_panel=o.HOW)] = "ddim",
    device: o.Device = "cpu",
    rows: Annotated[int, typer.Option(metavar="N", help="Most pictures on a sheet.", rich_help_panel=o.OUTPUT)] = 8,
    columns: Annotated[int, typer.Option(metavar="N", help="Timesteps on a sheet.", rich_help_panel=o.OUTPUT)] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder: a PNG sheet a feature, features.json, and what `saeuron report --features` draws.", rich_help_panel=o.OUTPUT),
    ] = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Show what features answer to: the pictures where they fire most, with heat maps over them by timestep.

    The unedited model runs on prompts; memory does not grow with the number of pictures.

    Example: `saeuron features --features 296,157 --model demo --sae demo:saes --hookpoint up_blocks.1.attentions.1 --prompts demo:prompts.txt
    --output features`, or by concept: `saeuron features --concepts Neon --output neon`
    """
    if bool(numbers) == bool(concepts):
        raise SaeuronError("give --features N,M or --concepts A,B, one of the two")
    for value, least, option in (
        (pictures, 1, "--pictures"), (batch_size, 1, "--batch-size"), (rows, 1, "--rows"), (columns, 1, "--columns"), (limit, 1, "--limit"), (seed, 0, "--seed"),
    ):  # fmt: skip
        if value < least:
            raise SaeuronError(f"{option} is {value}; it must be at least {least}")
    check_scheduler(scheduler)
    check_pixels(height, width)
    check_seed(seed, "--seed")
    if output is None:
        raise SaeuronError("no output: give --output DIR")
    check_output(output, overwrite, MARKER, "folder of feature sheets")
    plan: Plan | None = None
    texts = _texts(prompts)
    if concepts:
        plan, shown = _plan(names(concepts), rule, model, variant, sae, hookpoint, activations, preset_file, device)
        texts = texts or shown
        source, sources, wanted = plan.model, plan.saes, {}
        steps, guidance = steps or plan.steps, plan.guidance if guidance is None else guidance
    else:
        if not model:
            raise SaeuronError("no base model known: give --model DIR|HUB_ID|demo")
        source, wanted = model, _numbers(names(numbers), o.hookpoints_of(hookpoint))
        sources = sources_of(sae or [], list(wanted), model)
    if not texts:
        raise SaeuronError("no prompts: give --prompts FILE with one a line (demo's own: demo:prompts.txt)")
    count, scale = sampling_of(source, steps, guidance)
    with progress_line("starting") as say:
        from ...editor.denoisers.sampling import Sampling

        sampling = Sampling(count, scale, seed, batch_size, height, width, scheduler)
        belongs: dict[tuple[str, int], list[str]] = {}
        if plan is not None:
            sources, wanted, belongs = _chosen(plan, limit, say)
        records, hashes = _run(source, variant, sources, wanted, texts, pictures, sampling, device, rows, say)
        say("drawing sheets")
        found = _write(output, overwrite, records, belongs, hashes, source, sampling, columns)
    for entry in found["features"]:
        if entry["sheet"] is None:
            print_warning(
                f"feature {entry['feature']} at {entry['hookpoint']} was not active in any of {pictures} pictures; it has no sheet"
            )
    if as_json:
        write_json(found)
    else:
        _print(found, output)


def _texts(prompts: str | None) -> tuple[str, ...]:
    from ..plan.resolve import path_of

    if prompts is None:
        return ()
    texts = lines_of(Path(path_of(prompts)))
    if not texts:
        raise SaeuronError(f"prompts '{prompts}': no line holds a prompt")
    return texts


def _numbers(texts: tuple[str, ...], hookpoints: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for text in texts:
        at, number = feature(text, hookpoints, "--features")
        if number not in found.setdefault(at, []):
            found[at].append(number)
    return found


def _plan(
    concepts: tuple[str, ...], rule: str | None, model: str | None, variant: str | None, sae: list[str] | None, hookpoint: str | None,
    activations: list[str] | None, preset_files: list[str] | None, device: str,
) -> tuple[Plan, tuple[str, ...]]:  # fmt: skip
    """What presets and options say, and the prompts of the concepts' domains (so that others can be seen not to answer)."""
    from ...editor.features.concepts import presets
    from ..plan.resolve import resolve, to_fetch
    from ..plan.settings import Settings

    wanted = Settings(
        concepts=concepts, output=Path("unused"), model=model, variant=variant, sae=tuple(sae or ()), hookpoint=hookpoint, select=rule,
        activations=tuple(activations or ()), device=device, preset_files=tuple(preset_files or ()),
    )  # fmt: skip
    plan = resolve(wanted)
    to_fetch(plan)
    known = presets(wanted.preset_files)
    texts = [text for c in concepts if c in known for own in known[c].compared.values() for text in own]
    return plan, tuple(dict.fromkeys(texts))


def _chosen(plan: Plan, limit: int, say: Any) -> tuple[dict[str, str], dict[str, list[int]], dict[tuple[str, int], list[str]]]:
    """SAEs, features chosen at most steps, and the concepts that each belongs to."""
    from ...editor.features.overlap import describe_features
    from ...editor.features.selection import scores, select
    from ..plan.prepare import open_sources

    opened = open_sources(plan, say)
    wanted: dict[str, list[int]] = {}
    belongs: dict[tuple[str, int], list[str]] = {}
    for wish in opened.wishes:
        held = opened.of(wish)
        rows = [row.nonzero().flatten().tolist() for row in select(scores(held, wish.concept), wish.rule)]
        for entry in describe_features(held, wish.concept, rows)[:limit]:
            at, number = wish.hookpoint, int(entry["feature"])
            wanted.setdefault(at, []).append(number)
            belongs.setdefault((at, number), []).append(wish.concept)
    if not wanted:
        raise SaeuronError("no latent answers to these concepts more than to the others")
    return opened.plan.saes, {h: list(dict.fromkeys(n)) for h, n in wanted.items()}, belongs


def _run(
    model: str, variant: str | None, sources: dict[str, str], wanted: dict[str, list[int]], texts: tuple[str, ...], pictures: int, sampling: Sampling,
    device: str, rows: int, say: Any,
) -> tuple[list[FeatureRecord], dict[str, str]]:  # fmt: skip
    """What was recorded, and the hash of each hookpoint's SAE."""
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline, open_folder
    from ...editor.edit.bake import refuse_edited
    from ...editor.features.collect import check_sampling
    from ...editor.features.feature_maps import draw_prompts, record_features
    from ..plan.open import open_saes
    from ..plan.progress import Remaining

    folder = open_folder(model, None, variant, (sampling.height, sampling.width))
    check_sampling(folder, sampling)
    saes = open_saes(folder, {h: sources[h] for h in wanted})
    for at, numbers in wanted.items():
        for number in numbers:
            if number >= (n := saes[at].config.num_latents):
                raise SaeuronError(f"feature {number}: the SAE at '{at}' has features 0 to {n - 1}")
    say(f"loading {model}")
    pipeline = load_pipeline(model, None, device, variant=variant)
    refuse_edited(network_of(pipeline))
    clock = Remaining()

    def progress(done: int, total: int) -> None:
        say(f"recording: {done} of {total} pictures{clock.text(done, total)}")

    hashes = {name: sae.sha256() for name, sae in saes.items()}
    return record_features(pipeline, saes, wanted, draw_prompts(texts, pictures, sampling.seed), sampling, rows, progress), hashes


def _write(
    output: Path, overwrite: bool, records: list[FeatureRecord], belongs: dict[tuple[str, int], list[str]], hashes: dict[str, str], model: str,
    sampling: Sampling, columns: int,
) -> dict[str, Any]:  # fmt: skip
    import torch
    from safetensors.torch import save_file

    from ...validation.artifact.typed import strict_json
    from ...validation.page.features import FORMAT, MAPS, PICTURES
    from ..plan.resolve import public_name

    several = len({r.hookpoint for r in records}) > 1
    entries = []
    with building(output, overwrite, MARKER, "folder of feature sheets") as folder:
        (folder / PICTURES).mkdir()
        maps = {}
        for record in records:
            concepts = belongs.get((record.hookpoint, record.feature), [])
            name = f"{f'{record.hookpoint}-' if several else ''}{record.feature}.png"
            if record.top:
                _sheet(record, concepts, columns).save(folder / name)
                maps[f"{record.hookpoint}/{record.feature}"] = torch.stack([p.maps for p in record.top]).contiguous()
            for p in record.top:
                p.picture.save(folder / PICTURES / f"{p.number}.png")
            entries.append(_entry(record, concepts, name if record.top else None))
        save_file(maps, folder / MAPS)
        found = {
            "format": FORMAT, "model": public_name(model), "saes": hashes, "steps": sampling.steps, "guidance": sampling.guidance, "seed": sampling.seed, "scheduler": sampling.scheduler,
            "features": entries,
        }  # fmt: skip
        (folder / MARKER).write_text(strict_json(found) + "\n", encoding="utf-8")
    return found


def _entry(record: FeatureRecord, concepts: list[str], sheet: str | None) -> dict[str, Any]:
    from ...validation.page.features import PICTURES

    return {
        "feature": record.feature, "hookpoint": record.hookpoint, "concepts": concepts, "sheet": sheet, "pictures": record.pictures,
        "active_in": record.active, "timesteps": record.timesteps, "mean": record.mean.tolist(), "max": record.peak.tolist(),
        "active_tokens": record.share.tolist(),
        "top": [
            {
                "picture": p.number, "file": f"{PICTURES}/{p.number}.png", "prompt": p.prompt, "seed": p.seed, "score": p.score, "mean": p.maps.mean((1, 2)).tolist(),
                "max": p.maps.amax((1, 2)).tolist(), "active_tokens": (p.maps > 0).float().mean((1, 2)).tolist(),
            }
            for p in record.top
        ],
    }  # fmt: skip


def _sheet(record: FeatureRecord, concepts: list[str], columns: int) -> Image.Image:
    import numpy as np

    from ...validation.page.sheets import HeatRow, heat_sheet

    steps = sorted({round(i) for i in np.linspace(0, len(record.timesteps) - 1, columns)})
    largest = max(float(p.maps.max()) for p in record.top)
    rows = []
    for place, p in enumerate(record.top, 1):
        maps = [*(p.maps[i] for i in steps), p.maps.mean(0)]
        step = int(p.maps.amax((1, 2)).argmax())
        rows.append(HeatRow(
            f"{place}. {p.prompt}", f"seed {p.seed}, largest {float(p.maps[step].max()):.3g} at t {record.timesteps[step]:g}", p.picture,
            [m.numpy() for m in maps], [f"{float(m.max()):.3g}, {float((m > 0).float().mean()):.0%}" for m in maps],
        ))  # fmt: skip
    chosen = f", chosen for {', '.join(concepts)}" if concepts else ""
    return heat_sheet(
        f"Feature {record.feature} at {record.hookpoint}{chosen}",
        f"active in {record.active} of {record.pictures} pictures; shown: the {len(rows)} with the highest mean over tokens at any of {len(record.timesteps)} steps",
        [*(f"t {record.timesteps[i]:g}" for i in steps), "mean of all t"], rows, largest,
    )  # fmt: skip


def _print(found: dict[str, Any], output: Path) -> None:
    for entry in found["features"]:
        chosen = f" ({', '.join(entry['concepts'])})" if entry["concepts"] else ""
        head = f"feature {entry['feature']} at {entry['hookpoint']}{chosen}: active in {entry['active_in']} of {entry['pictures']} pictures"
        if entry["sheet"]:
            best = entry["top"][0]
            head += f', most in "{best["prompt"]}" (seed {best["seed"]}): {output / entry["sheet"]}'
        out.print(head, highlight=False, soft_wrap=True, markup=False)
    out.print(f"figures    {output / MARKER}", highlight=False, soft_wrap=True, markup=False)
