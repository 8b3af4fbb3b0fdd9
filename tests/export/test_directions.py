"""Key `directions`: rows of `probe` out of a file are the rows of the edit, they combine, and what doesn't fit is refused before anything is collected."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import refused, run

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.editor.edit.directions_file import load_directions, save_directions
from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.probe import ConceptRows
from saeuron.editor.edit.project import rows_in
from saeuron.editor.features.cache import model_sha256
from saeuron.editor.features.concepts import presets
from saeuron.export.plan import prepare as preparing
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import manifest

PLACES = ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
SHIPPED = demo.ROOT / "directions"
DEMO = sorted(name for name, concept in presets().items() if concept.model == "demo")


@pytest.fixture(autouse=True)
def nothing_is_collected(monkeypatch, request):
    if "collects" not in request.keywords:
        monkeypatch.setattr(preparing, "ensure", lambda *given, **named: pytest.fail("something is collected"))


def planned(*concepts, **changes):
    return resolve(Settings(concepts, "unused", **changes))


def hardened(path, *concepts, **changes):
    """An edit file as `saeuron harden` and an export leave it."""
    edit = prepare(planned(*concepts, **{"intervention": "weights+probe", **changes})).edit
    assert edit.provenance.model_sha256 == model_sha256(demo.PIPELINE)
    edit.save(path)
    return edit


def settings_file(path, *tables):
    keys = ("".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()) for table in tables)
    path.write_text("".join(f"[[concepts]]\n{text}\n" for text in keys))
    return path


@pytest.mark.parametrize("intervention", ["probe", "weights+probe"])
def test_an_edit_file_gives_the_edit_again(tmp_path, intervention):
    edit = hardened(tmp_path / "car.safetensors", "Car", multiplier=-7.0, intervention=intervention)
    path = settings_file(tmp_path / "s.toml", {"name": "Car", "multiplier": -7, "directions": str(tmp_path / "car.safetensors")})
    made = prepare(planned(settings=path, intervention=intervention)).edit
    assert made.sha256() == edit.sha256() and all(len(part.features) > len(part.timesteps) for part in made.hookpoints.values())
    said = [s for s in made.provenance.concepts if s.intervention == "probe"]
    added = len(load_directions(SHIPPED / "Car.safetensors", "Car")[PLACES[0]].rows) - 1
    assert {(s.hookpoint, s.added, s.rows.file, s.rows.sha256) for s in said} == {
        (place, added, "car.safetensors", file_sha256(tmp_path / "car.safetensors")) for place in PLACES
    }
    # All of its rows at another strength, and nothing else.
    weaker = prepare(planned(settings=path, intervention=intervention, multiplier=-3.0)).edit
    for name, part in made.hookpoints.items():
        acting = part.thresholds.isfinite()
        assert set(weaker.hookpoints[name].gains[acting].tolist()) == {-3.0} and set(part.gains[acting].tolist()) == {-7.0}
        assert torch.equal(weaker.directions[name].W_enc, part_rows(made, name).encoder)


def part_rows(edit, name):
    return rows_in(edit.directions[name])


def test_hardened_concepts_combine():
    """Each has its own rows and strength beside the other, whatever stands first."""
    both = prepare(planned("Neon", "Car", intervention="probe")).edit
    assert both.sha256() == prepare(planned("Car", "Neon", intervention="probe")).edit.sha256()
    known = presets()
    for concept in ("Neon", "Car"):
        alone = prepare(planned(concept, intervention="probe")).edit
        for name, part in both.hookpoints.items():
            for step, own in enumerate(part.chosen[concept]):
                other = alone.hookpoints[name].chosen[concept][step]
                assert len(own) == len(other) >= 1
                for ours, theirs in zip(part_rows(both, name), part_rows(alone, name), strict=True):
                    assert torch.equal(ours[own], theirs[other])
                assert set(part.gains[step, own].tolist()) == {known[concept].multiplier}


def test_a_start_leaves_rows_out_before_it():
    early, late = (prepare(planned("Car", intervention="probe", start=start)).edit.hookpoints[PLACES[0]] for start in (1000, 500))
    for t, before, after in zip(early.timesteps.tolist(), early.chosen["Car"], late.chosen["Car"], strict=True):
        assert after == (before if t <= 500 else [])


def test_an_edit_that_starts_late_has_no_rows_before(tmp_path):
    hardened(tmp_path / "e.safetensors", "Car", start=500)
    table = {"name": "Car", "directions": str(tmp_path / "e.safetensors")}
    path = settings_file(tmp_path / "s.toml", table)
    refused("hold no rows above timestep", "export", "--settings", path, "-o", tmp_path / "o", "--dry-run")
    made = prepare(planned(settings=path, start=500)).edit
    assert made.hookpoints[PLACES[0]].chosen["Car"] == [
        list(row) for row in prepare(planned("Car", start=500)).edit.hookpoints[PLACES[0]].chosen["Car"]
    ]
    with pytest.raises(SaeuronError, match="start late"):
        save_directions(tmp_path / "l.safetensors", "Car", "x", load_directions(tmp_path / "e.safetensors", "Car"))


@pytest.mark.parametrize("name", DEMO)
def test_every_preset_of_the_demo_is_hardened(name):
    """Its rows lie in the package, made from this very model; features of the SAE are what they were, if they are asked for."""
    concept, plan = presets()[name], planned(name)
    assert concept.intervention == "weights+probe" and concept.status == "tuned" and not any(w.collecting for w in plan.wishes)
    assert {(w.hookpoint, w.status, w.multiplier) for w in plan.wishes} == {(place, "tuned", concept.multiplier) for place in PLACES}
    assert set(load_directions(SHIPPED / f"{name}.safetensors", name)) == set(PLACES)
    assert preparing.open_model(plan) == demo.PIPELINE
    features = planned(name, intervention="multiply")
    assert {(w.hookpoint, str(w.rule), w.multiplier, w.status, w.rows) for w in features.wishes} == {
        (place, concept.select, concept.features.multiplier, "tuned", "") for place in concept.features.hookpoint.split(",")
    }
    assert {w.multiplier for w in planned(name, intervention="weights+zero").wishes} == {concept.features.multiplier}
    assert {w.status for w in planned(name, multiplier=-1.0).wishes} == {"untuned"}


def test_half_precision_is_nearly_the_edit(tmp_path):
    rows = {
        place: ConceptRows(held.timesteps, tuple(held.rows), None)
        for place, held in load_directions(SHIPPED / "Star.safetensors", "Star").items()
    }
    exact = {place: held._replace(rows=tuple(r._replace(encoder=r.encoder * 1.0001) for r in held.rows)) for place, held in rows.items()}
    save_directions(tmp_path / "s.safetensors", "Star", "x", exact)
    again = load_directions(tmp_path / "s.safetensors", "Star")
    for place, held in exact.items():
        for one, other in zip(held.rows, again[place].rows, strict=True):
            assert torch.equal(one.bias, other.bias) and torch.equal(one.decoder, other.decoder)
            assert not torch.equal(one.encoder, other.encoder) and float((one.encoder - other.encoder).norm() / one.encoder.norm()) < 1e-3
    huge = {place: held._replace(rows=tuple(r._replace(decoder=r.decoder * 1e6) for r in held.rows)) for place, held in rows.items()}
    with pytest.raises(SaeuronError, match="float16 can't hold"):
        save_directions(tmp_path / "h.safetensors", "Star", "x", huge)
    assert not (tmp_path / "h.safetensors").exists()


def changed(path, into, header=lambda h: h, tensors=lambda t: t):
    with safe_open(path, "pt") as file:
        said = dict(file.metadata())
    save_file(tensors(load_file(path)), into, metadata=header(said))


def _set(name, value):
    def change(tensors):
        return {**tensors, name: value(tensors[name])}

    return change


def _nan(values):
    values = values.clone()
    values.view(-1)[3] = torch.nan
    return values


FIRST = f"{PLACES[0]}/"
DAMAGED = {
    "NaN": ({"tensors": _set(FIRST + "encoder", _nan)}, "NaN or infinite"),
    "infinite": ({"tensors": _set(FIRST + "bias", lambda v: v / 0)}, "NaN or infinite"),
    "zeros": ({"tensors": _set(FIRST + "decoder", lambda v: v * (torch.arange(v.shape[1]) != 7)[:, None])}, "a row of zeros"),
    "narrow": (
        {"tensors": lambda t: {k: v[..., :-1].contiguous() if k.endswith(("encoder", "decoder")) else v for k, v in t.items()}},
        "channels wide",
    ),
    "shape": ({"tensors": _set(FIRST + "decoder", lambda v: v[..., :-1].contiguous())}, "rows of another form"),
    "steps": ({"tensors": _set(FIRST + "timesteps", lambda v: v[:-1].contiguous())}, "rows of another form"),
    "order": ({"tensors": _set(FIRST + "timesteps", lambda v: v.flip(0).contiguous())}, "rows of another form"),
    "type": ({"tensors": _set(FIRST + "bias", lambda v: v.long())}, "rows of another form"),
    "lost": ({"tensors": lambda t: {k: v for k, v in t.items() if k != FIRST + "bias"}}, "damaged directions"),
    "model": ({"header": lambda h: {**h, "model_sha256": "0" * 64}}, "made from another model"),
    "no model": ({"header": lambda h: {**h, "model_sha256": ""}}, "doesn't say from which model"),
    "concept": ({"header": lambda h: {**h, "concept": "Boat"}}, "hold nothing of it, but of Boat"),
    "block": (
        {"tensors": lambda t: {k: v for k, v in t.items() if not k.startswith(FIRST)}},
        f"hold nothing of it at '{PLACES[0]}', but at {PLACES[1]}",
    ),
    "format": ({"header": lambda h: {**h, "format": "other"}}, "holds no rows of probe"),
    "reach": ({"tensors": lambda t: {k: v - 60 if k.endswith("timesteps") else v for k, v in t.items()}}, "directions of 'Car'"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_what_does_not_fit_is_refused_before_anything_is_collected(tmp_path, fault):
    how, message = DAMAGED[fault]
    changed(SHIPPED / "Car.safetensors", tmp_path / "car.safetensors", **how)
    tables = [
        {"name": "Boat", "directions": ""},
        {"name": "Car", "directions": str(tmp_path / "car.safetensors")},
    ]  # Boat's would be collected
    path = settings_file(tmp_path / "s.toml", *tables)
    refused(message, "export", "--settings", path, "-o", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_the_model_is_told_by_its_files(tmp_path):
    """A weight of the denoiser that differs in one bit is another model."""
    shutil.copytree(demo.PIPELINE, tmp_path / "same")
    prepare(planned("Car", model=str(tmp_path / "same")))
    weights = tmp_path / "same" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused("made from another model", "export", "--concepts", "Car", "--model", tmp_path / "same", "-o", tmp_path / "o")


def test_files_that_are_none(tmp_path):
    plain = prepare(planned("Car", intervention="weights")).edit
    plain.save(tmp_path / "w.safetensors")
    for source, message in (
        (tmp_path / "nowhere.safetensors", "does not exist"), (tmp_path / "w.safetensors", "an edit without rows of probe"),
        (demo.CLASSIFIER, "holds no rows of probe"),
    ):  # fmt: skip
        path = settings_file(tmp_path / "s.toml", {"name": "Car", "directions": str(source)})
        refused(message, "export", "--settings", path, "-o", tmp_path / "o", "--dry-run")
    with pytest.raises(SaeuronError, match="holds nothing of 'Boat'"):
        load_directions(SHIPPED / "Car.safetensors", "Boat")
    (tmp_path / "s.toml").write_text('[[concepts]]\nname = "Car"\nfeatures = { hookpoint = "a" }\n')
    refused("'features' holds hookpoint and multiplier", "export", "--settings", tmp_path / "s.toml", "-o", tmp_path / "o")


def test_names_and_blocks_are_filled_in(tmp_path):
    for name in ("Car", "Boat"):
        (tmp_path / name).mkdir()
        for place in PLACES:
            shutil.copy(SHIPPED / f"{name}.safetensors", tmp_path / name / f"{place}.safetensors")
    pattern = str(tmp_path / "{name}" / "{hookpoint}.safetensors")
    path = settings_file(tmp_path / "s.toml", *({"name": name, "directions": pattern} for name in ("Car", "Boat")))
    assert prepare(planned(settings=path)).edit.sha256() == prepare(planned("Car", "Boat")).edit.sha256()


def test_what_the_rows_do_not_serve_is_collected_and_said(tmp_path):
    """Another block, another intervention, or no rows asked for."""
    at = "down_blocks.0.attentions.0"
    for changes, why in (
        ({"hookpoint": at, "intervention": "probe"}, f"serve other blocks than '{at}'"), ({"hookpoint": f"{at},{PLACES[0]}"}, "serve other blocks"),
        ({"intervention": "project", "becomes": "a boat"}, "are for probe, not project"),
    ):  # fmt: skip
        plan = planned("Car", **changes)
        (line,) = preparing.unserved(plan)
        assert why in line and not any(w.rows for w in plan.wishes) and all(w.collecting or w.pairs for w in plan.wishes)
    plan = planned("Car", hookpoint=PLACES[1])  # one of its blocks it does serve
    assert [(w.hookpoint, bool(w.rows)) for w in plan.wishes] == [(PLACES[1], True)] and not preparing.unserved(plan)
    path = settings_file(tmp_path / "s.toml", {"name": "Car", "directions": ""})
    plan = planned(settings=path)
    assert all(w.collecting and not w.rows for w in plan.wishes) and not preparing.unserved(plan)
    path = settings_file(tmp_path / "t.toml", {"name": "Car", "hookpoint": at})
    assert all(w.collecting and not w.rows for w in planned(settings=path).wishes)
    assert not preparing.unserved(planned("Car", intervention="multiply"))


def test_hardening_begins_anew():
    plan = resolve(Settings(("Car",), "unused"), anew=True)
    assert all(w.collecting and not w.rows for w in plan.wishes)


@pytest.mark.slow
def test_the_presets_as_they_are_shipped_are_proven_and_on_record(tmp_path):
    result = export_artifact(Settings(("Neon", "House"), tmp_path / "a", proof="short"))
    assert result.proven, result.report
    record = manifest.read(tmp_path / "a")
    said = {s.name: s for s in record.settings if s.intervention == "probe"}
    for name in ("Neon", "House"):
        file = SHIPPED / f"{name}.safetensors"
        rows = load_directions(file, name)[PLACES[0]].rows
        assert (said[name].rows.file, said[name].rows.sha256, said[name].added) == (file.name, file_sha256(file), len(rows) - 1)
    # Out of the artifact it can be exported again, and what it says of its rows stays.
    again = Settings(edit=tmp_path / "a" / "edit" / "edit.safetensors", output=tmp_path / "b", formats="checkpoint", proof="short")
    export_artifact(again)
    assert manifest.read(tmp_path / "b").settings == record.settings
    assert Path(tmp_path / "b" / "README.md").is_file()


@pytest.mark.slow
def test_tuning_takes_the_rows(tmp_path):
    run(
        "tune", "--concepts", "Car", "--multiplier=-5,-20", "--budget", 60, "--tune-seeds", 42, "--report-seeds", 188, "--output", tmp_path / "t",
    )  # fmt: skip
    made = prepare(planned(settings=tmp_path / "t" / "settings.toml")).edit
    alone = prepare(planned("Car", multiplier=made.provenance.concepts[-1].multiplier)).edit
    assert "demo:directions/{name}.safetensors" in (tmp_path / "t" / "settings.toml").read_text()
    for name in made.hookpoints:
        assert made.directions[name].sha256() == alone.directions[name].sha256()


def test_an_edit_of_several_concepts_serves_each(tmp_path):
    edit = hardened(tmp_path / "both.safetensors", "Car", "Neon", intervention="probe")
    tables = [{"name": name, "directions": str(tmp_path / "both.safetensors")} for name in ("Neon", "Car")]
    made = prepare(planned(settings=settings_file(tmp_path / "s.toml", *tables), intervention="probe")).edit
    assert made.sha256() == edit.sha256()
    mixed = Edit.load(tmp_path / "both.safetensors")
    part = mixed.hookpoints[PLACES[0]]
    part.chosen["Car"][0] = part.chosen["Car"][0] + part.chosen["Car"][1][:1]  # a row too many at one timestep
    replace(mixed, provenance=edit.provenance).save(tmp_path / "both.safetensors")
    refused("doesn't say which rows are those of 'Car'", "export", "--settings", tmp_path / "s.toml", "-o", tmp_path / "o")
