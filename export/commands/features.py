"""`saeuron features`: what single features answer to, as sheets of pictures with heat maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.declared import HOW, OUTPUT, WHAT, Checked, option
from ...editor.common.errors import SaeuronError
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.features.prompt_sets import lines_of
from ..plan.folder import building, check_output
from ..plan.settings import Plan, Settings
from . import options as o
from .by_feature import feature, sampling_of, sources_of
from .console import names, print_warning, progress_line, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from PIL import Image

    from ...editor.features.feature_maps import FeatureRecord
    from ...validation.page.features import Feature, FeatureReport

MARKER = "features.json"


@dataclass(frozen=True)
class _Sheets(Checked):
    """How much is drawn."""

    limit: int = option(3, "N", WHAT, least=1)
    """With --concepts: most features a concept and hookpoint."""
    pictures: int = option(64, "N", HOW, least=1)
    """Pictures made in all; prompts are drawn at random."""
    rows: int = option(8, "N", OUTPUT, least=1)
    """Most pictures on a sheet."""
    columns: int = option(5, "N", OUTPUT, least=1)
    """Timesteps on a sheet."""


@command
def features(
    wanted: Annotated[
        Settings, only("concepts", "kind", "instead", "select", "preset_files", "activations", "model", "variant", "hookpoint", "sae", "device", "overwrite")
    ],
    sampling: Annotated[Sampling, only("seed", "batch_size", "height", "width", "scheduler")],
    sheets: _Sheets,
    numbers: Annotated[str, typer.Option("--features", metavar="N,M", help="Instead of --concepts: features, e.g. 296,157; HOOKPOINT:296 where there are several.", rich_help_panel=o.WHAT)] = "",
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="Text file, one prompt a line; demo's own: demo:prompts.txt. Default with --concepts: those of the domain.", rich_help_panel=o.WHAT)] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps. Default: the preset's, else 50 (demo: 20).", rich_help_panel=o.HOW)] = None,
    guidance: Annotated[float | None, typer.Option(metavar="SCALE", help="Guidance scale. Default: the preset's, else 7.5 (demo: 3).", rich_help_panel=o.HOW)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder: a PNG sheet a feature, features.json, and what `saeuron report --features` draws.", rich_help_panel=o.OUTPUT)] = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Show what features answer to: the pictures where they fire most, with heat maps over them by timestep.

    The unedited model runs on prompts; memory does not grow with the number of pictures.

    Example: `saeuron features --features 296,157 --model demo --sae demo:saes --hookpoint up_blocks.1.attentions.1 --prompts demo:prompts.txt
    --output features`, or by concept: `saeuron features --concepts Neon --output neon`
    """
    if bool(numbers) == bool(wanted.concepts):
        raise SaeuronError("give --features N,M or --concepts A,B, one of the two")
    if output is None:
        raise SaeuronError("no output: give --output DIR")
    check_output(output, wanted.overwrite, MARKER, "folder of feature sheets")
    plan: Plan | None = None
    texts = _texts(prompts)
    source: str | None
    if wanted.concepts:
        plan, shown = _plan(wanted)
        texts = texts or shown
        source, sources, chosen = plan.model, plan.saes, {}
        steps, guidance = steps or plan.steps, plan.guidance if guidance is None else guidance
    else:
        source, chosen = wanted.model, _numbers(names(numbers), o.hookpoints_of(wanted.hookpoint))
        if not source:
            raise SaeuronError("no base model known: give --model DIR|HUB_ID|demo")
        sources = sources_of(wanted.sae, list(chosen), source)
    if not texts:
        raise SaeuronError("no prompts: give --prompts FILE with one a line (demo's own: demo:prompts.txt)")
    sampling = sampling_of(sampling, source, steps, guidance)
    with progress_line("starting") as say:
        belongs: dict[tuple[str, int], list[str]] = {}
        if plan is not None:
            sources, chosen, belongs = _chosen(plan, sheets.limit, say)
        records, hashes = _run(source, wanted, sources, chosen, texts, sheets, sampling, say)
        say("drawing sheets")
        found = _write(output, wanted.overwrite, records, belongs, hashes, source, sampling, sheets.columns)
    for entry in found.features:
        if entry.sheet is None:
            print_warning(
                f"feature {entry.feature} at {entry.hookpoint} was not active in any of {sheets.pictures} pictures; it has no sheet"
            )
    if as_json:
        write_json(found)
    else:
        _print(found, output)


def _texts(prompts: str | None) -> tuple[str, ...]:
    from ...editor.demo import path_of

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


def _plan(wanted: Settings) -> tuple[Plan, tuple[str, ...]]:
    """What presets and options say, and the prompts of the concepts' domains (so that others can be seen not to answer)."""
    from ..plan.resolve import resolve, to_fetch

    plan = resolve(replace(wanted, intervention="multiply"))  # whatever else a preset does: what is shown are features of its SAE
    to_fetch(plan)
    texts = [text for c in plan.concepts.values() for own in c.compared.values() for text in own]
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
    model: str, settings: Settings, sources: dict[str, str], wanted: dict[str, list[int]], texts: tuple[str, ...], sheets: _Sheets,
    sampling: Sampling, say: Any,
) -> tuple[list[FeatureRecord], dict[str, str]]:  # fmt: skip
    """What was recorded, and the hash of each hookpoint's SAE."""
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline, open_folder
    from ...editor.edit.bake import refuse_edited
    from ...editor.features.collect import check_sampling
    from ...editor.features.feature_maps import draw_prompts, record_features
    from ..plan.open import open_saes
    from ..plan.progress import Remaining

    folder = open_folder(model, None, settings.variant, (sampling.height, sampling.width))
    check_sampling(folder, sampling)
    saes = open_saes(folder, {h: sources[h] for h in wanted})
    for at, numbers in wanted.items():
        for number in numbers:
            if number >= (n := saes[at].config.num_latents):
                raise SaeuronError(f"feature {number}: the SAE at '{at}' has features 0 to {n - 1}")
    say(f"loading {model}")
    pipeline = load_pipeline(model, None, settings.device, variant=settings.variant)
    refuse_edited(network_of(pipeline))
    clock = Remaining()

    def progress(done: int, total: int) -> None:
        say(f"recording: {done} of {total} pictures{clock.text(done, total)}")

    hashes = {name: sae.sha256() for name, sae in saes.items()}
    return record_features(
        pipeline, saes, wanted, draw_prompts(texts, sheets.pictures, sampling.seed), sampling, sheets.rows, progress
    ), hashes


def _write(
    output: Path, overwrite: bool, records: list[FeatureRecord], belongs: dict[tuple[str, int], list[str]], hashes: dict[str, str], model: str,
    sampling: Sampling, columns: int,
) -> FeatureReport:  # fmt: skip
    import torch
    from safetensors.torch import save_file

    from ...editor.common.typed import strict_json
    from ...validation.page.features import FORMAT, MAPS, PICTURES, FeatureReport
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
        found = FeatureReport(
            format=FORMAT, model=public_name(model), saes=hashes, steps=sampling.steps, guidance=sampling.guidance, seed=sampling.seed, scheduler=sampling.scheduler,
            features=entries,
        )  # fmt: skip
        (folder / MARKER).write_text(strict_json(found) + "\n", encoding="utf-8")
    return found


def _entry(record: FeatureRecord, concepts: list[str], sheet: str | None) -> Feature:
    from ...validation.page.features import PICTURES, Feature, Top

    top = [
        Top(
            picture=p.number, file=f"{PICTURES}/{p.number}.png", prompt=p.prompt, seed=p.seed, score=p.score, mean=p.maps.mean((1, 2)).tolist(),
            max=p.maps.amax((1, 2)).tolist(), active_tokens=(p.maps > 0).float().mean((1, 2)).tolist(),
        )
        for p in record.top
    ]  # fmt: skip
    return Feature(
        feature=record.feature, hookpoint=record.hookpoint, concepts=concepts, sheet=sheet, pictures=record.pictures, active_in=record.active,
        timesteps=record.timesteps, mean=record.mean.tolist(), max=record.peak.tolist(), active_tokens=record.share.tolist(), top=top,
    )  # fmt: skip


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


def _print(found: FeatureReport, output: Path) -> None:
    for entry in found.features:
        chosen = f" ({', '.join(entry.concepts)})" if entry.concepts else ""
        head = f"feature {entry.feature} at {entry.hookpoint}{chosen}: active in {entry.active_in} of {entry.pictures} pictures"
        if entry.sheet:
            best = entry.top[0]
            head += f', most in "{best.prompt}" (seed {best.seed}): {output / entry.sheet}'
        tell(head)
    tell(f"figures    {output / MARKER}")
