"""`saeuron steer`: an edit by hand, which multiplies single features."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.typed import plain
from ...editor.common.writing import whole_file
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.gains import check_gain
from ..plan.folder import check_files
from ..plan.settings import Settings
from . import options as o
from .by_feature import feature, sampling_of, sources_of
from .console import print_warning, progress_line, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from PIL import Image


@command
def steer(
    wanted: Annotated[Settings, only("allow_amplify", "variant", "device", "overwrite", "residual")],
    sampling: Annotated[Sampling, only("height", "width", seed=7)],
    features: Annotated[list[str] | None, typer.Option("--feature", metavar="N=NUMBER", help="Feature N is multiplied by NUMBER where it is active: 0 removes it, below 0 turns it round. HOOKPOINT:N=NUMBER where there are several; repeatable.", rich_help_panel=o.WHAT)] = None,
    timesteps: Annotated[str | None, typer.Option(metavar="FROM-TO", help="Only at these, both included, e.g. 999-500. Default: always.", rich_help_panel=o.WHAT)] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the features are called together. Default: each `feature N`.", rich_help_panel=o.WHAT)] = None,
    model: o.Model = None,
    hookpoint: Annotated[str | None, typer.Option(metavar="NAME", help="Block, e.g. up_blocks.1.attentions.1 or transformer_blocks.12; several comma-separated.", rich_help_panel=o.WHERE)] = None,
    sae: Annotated[list[str] | None, typer.Option(metavar="DIR|ID", help="SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable.", rich_help_panel=o.WHERE)] = None,
    preview: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Prompt for a picture before and after; repeatable. Also the prompts of a later proof.", rich_help_panel=o.HOW)] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps, also of a later proof. Default: 50 (demo: 20).", rich_help_panel=o.HOW)] = None,
    guidance: Annotated[float | None, typer.Option(metavar="SCALE", help="Guidance scale, also of a later proof. Default: 7.5 (demo: 3).", rich_help_panel=o.HOW)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The edit (.safetensors); a preview lies beside it as .png.", rich_help_panel=o.OUTPUT)] = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Make an edit by hand: multiply single features wherever they are active.

    The file is exported and proven as any other edit: `saeuron-export --edit FILE --output DIR`.

    Example: `saeuron steer --feature 296=-5 --feature 157=0 --model demo --sae demo:saes --hookpoint up_blocks.1.attentions.1 --preview
    "An image of Car in Neon style." --output edit.safetensors`
    """
    hookpoints = o.hookpoints_of(hookpoint)
    gains = _gains(features or [], hookpoints, wanted.allow_amplify)
    bounds, residual = _range(timesteps), wanted.residual or "keep"
    if name is not None and not name.strip():
        raise SaeuronError("--name is empty")
    if not model:
        raise SaeuronError("no base model known: give --model DIR|HUB_ID|demo")
    sources = sources_of(sae or [], list(gains), model)
    sampling = sampling_of(sampling, model, steps, guidance)
    files = _files(output, bool(preview), wanted.overwrite)
    with progress_line("opening SAE") as say:
        from ...editor.denoisers.families import telling_in
        from ...editor.denoisers.pipelines import open_folder, scheduler_in
        from ...editor.denoisers.schedulers import check_loop
        from ...editor.denoisers.schedulers import timesteps as timesteps_of
        from ...editor.edit.provenance import SamplingUsed
        from ...editor.edit.steering import steering_edit
        from ..plan.open import open_saes
        from ..plan.resolve import public_name

        folder = open_folder(model, None, wanted.variant, (sampling.height, sampling.width) if preview else None)
        scheduler = scheduler_in(folder)
        told = telling_in(folder, scheduler, sampling.height, sampling.width)
        check_loop(scheduler, sampling.steps, told)
        saes = open_saes(folder, sources)
        trained = int(scheduler.config.num_train_timesteps)
        edit = steering_edit(gains, saes, bounds, residual, name, wanted.allow_amplify, trained)
        edit.provenance.named(public_name(model), {at: public_name(source) for at, source in sources.items()})
        edit.provenance.sampling = SamplingUsed(sampling.steps, sampling.guidance)
        fired: dict[str, float] = {}
        sheet = None
        if preview:
            edit.provenance.prompts = list(preview)
            fired, sheet = _preview(model, wanted, edit, saes, preview, sampling, say)
        _write(edit, sheet, files)
    found: dict[str, Any] = {
        "edit": str(files[0]), "sha256": edit.sha256(), "residual": residual, "timesteps": bounds and list(bounds), "features": plain(edit.provenance.concepts),
    }  # fmt: skip
    if bounds and not any(bounds[1] <= t <= bounds[0] for t in timesteps_of(scheduler, sampling.steps, told).tolist()):
        print_warning(
            f"none of {sampling.steps} {type(scheduler).__name__.removesuffix('Scheduler')} steps lies at timesteps {bounds[0]}-{bounds[1]}, so the edit does nothing there"
        )
    if preview:
        found |= {"preview": str(files[1]), "fired": fired}
        for concept, share in fired.items():
            if share == 0:
                print_warning(f"'{concept}' never fired in the preview, so a proof on these prompts would fail")
    if as_json:
        write_json(found)
    else:
        _print(found, fired)


def _gains(texts: list[str], hookpoints: list[str], allow_amplify: bool) -> dict[str, dict[int, float]]:
    """Hookpoint → feature → number."""
    if not texts:
        raise SaeuronError("no feature named: give --feature N=NUMBER, e.g. --feature 296=-5")
    found: dict[str, dict[int, float]] = {}
    for text in texts:
        head, equals, tail = text.partition("=")
        try:
            gain = float(tail)
        except ValueError:
            raise SaeuronError(f"--feature '{text}': expected N=NUMBER, e.g. 296=-5") from None
        at, number = feature(head, hookpoints, "--feature")
        if number in found.setdefault(at, {}):
            raise SaeuronError(f"--feature: {number} is named twice")
        check_gain(number, gain, allow_amplify)
        found[at][number] = gain
    return found


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    high, _, low = text.partition("-")
    parts = [high.strip(), low.strip()]
    if not all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts) or int(high) < int(low):
        raise SaeuronError(f"--timesteps '{text[:40]}': expected FROM-TO, the noisier, larger one first, e.g. 999-500")
    return int(high), int(low)


def _files(output: Path | None, preview: bool, overwrite: bool) -> list[Path]:
    if output is None:
        raise SaeuronError("no output: give --output FILE.safetensors")
    if output.suffix != ".safetensors":
        raise SaeuronError(f"--output '{output}' is to be a .safetensors file")
    files = [output, output.with_suffix(".png")] if preview else [output]
    check_files(files, overwrite)
    return files


def _preview(
    model: str, wanted: Settings, edit: Any, saes: Any, prompts: list[str], s: Sampling, say: Any
) -> tuple[dict[str, float], Image.Image]:  # fmt: skip
    """Share of decisions in which each concept fired, and the sheet of pictures before and after."""
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline
    from ...editor.denoisers.sampling import generate
    from ...editor.edit.bake import refuse_edited
    from ...editor.edit.hook import AblationHook
    from ...validation.page.sheets import picture_rows

    say(f"loading {model}")
    pipeline = load_pipeline(model, None, wanted.device, variant=wanted.variant)
    refuse_edited(network_of(pipeline))
    seeds = [s.seed + j for j in range(len(prompts))]

    def pictures() -> Any:
        return generate(pipeline, prompts, seeds, s.steps, s.guidance, s.height, s.width, batch_size=4)

    say(f"drawing {len(prompts)} pictures of the unedited model")
    before = pictures()
    say(f"drawing {len(prompts)} pictures through the edit")
    with AblationHook(network_of(pipeline), edit, saes, record=True) as hook:
        after = pictures()
    fired: dict[str, float] = {}
    for concept in edit.concepts:
        shares = []
        for at, part in edit.hookpoints.items():
            own = [i for i, f in enumerate(part.features.tolist()) if any(f in row for row in part.chosen.get(concept, []))]
            shares += [float(d.fires[..., i].float().mean()) for d in hook.decisions[at] for i in own]
        fired[concept] = sum(shares) / len(shares)
    # A plain x: PIL's own font has no multiplication sign.
    said = ", ".join(f"{c.select} x {c.multiplier:g}" for c in edit.provenance.concepts)
    return fired, picture_rows([("original", before), (said, after)], 192, prompts)


def _write(edit: Any, sheet: Image.Image | None, files: list[Path]) -> None:
    """Both files whole, or neither: the sheet gets its name first, the edit, which needs no sheet, last."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(whole_file(path)) for path in files]
        edit.save(made[0])
        if sheet is not None:
            sheet.save(made[1])


def _print(found: dict[str, Any], fired: dict[str, float]) -> None:
    when = f", timesteps {found['timesteps'][0]}-{found['timesteps'][1]}" if found["timesteps"] else ""
    for c in found["features"]:
        share = f"; fires at {fired[c['name']]:.1%} of tokens and steps in the preview" if c["name"] in fired else ""
        tell(f"{c['select']} × {c['multiplier']:g} at {c['hookpoint']}{when}{share}")
    tell(f"edit       {found['edit']}")
    if "preview" in found:
        tell(f"preview    {found['preview']}")
