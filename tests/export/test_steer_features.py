"""steer, features and export --edit as a user types them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import HOOKPOINT, check_plan, make_sae, put
from typer.testing import CliRunner

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import read_header
from saeuron.editor.common.typed import plain
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import capture, generate
from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.provenance import Provenance
from saeuron.export.cli import app
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.page.sheets import heat, picture_rows

runner = CliRunner()
PROMPTS = [
    "An image of House in Neon style.",
    "An image of Car.",
    "An image of Star in Sepia style.",
    "An image of Boat in Tiles style.",
    "An image of Heart.",
]


def run(*options, code=0):
    result = runner.invoke(app, [str(o) for o in options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + (repr(result.exception) if result.exception else "")
    return result


def refused(message, *options):
    result = run(*options, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module")
def seen(tiny):
    """Brute force: every prompt alone, latents of the conditional half `[T, n, h, w]`, and the picture."""
    pipeline, sae, found = load_pipeline(str(tiny["model"])), make_sae(), []
    for number, prompt in enumerate(PROMPTS):
        with capture(pipeline.unet, [HOOKPOINT]) as captures:
            picture = generate(pipeline, [prompt], [42 + number], 4, 3.0, 16, 24)[0]
        tokens = torch.stack([c.outputs[HOOKPOINT][1] for c in captures])
        z = sae.encode(tokens).transpose(1, 2).unflatten(-1, (4, 6))
        found.append((z, picture, [c.timestep for c in captures]))
    return found


@pytest.fixture(scope="module")
def active(seen):
    """Three features: the most active one, one active in some pictures only, and one that never is."""
    peaks = torch.stack([z.amax((0, 2, 3)) for z, _, _ in seen])  # [pictures, n]
    often = int(torch.stack([z.mean((0, 2, 3)) for z, _, _ in seen]).mean(0).argmax())
    some = next(int(i) for i in ((peaks > 0).sum(0) == 3).nonzero().flatten() if i != often)
    return often, some, int((peaks.amax(0) == 0).nonzero()[0])


@pytest.fixture
def steering(tiny, tmp_path):
    return [
        "--model", tiny["model"], "--sae", tiny["sae"], "--hookpoint", f"unet.{HOOKPOINT}", "--steps", 3, "--guidance", 3, "--output", tmp_path / "e.safetensors",
    ]  # fmt: skip


@pytest.fixture
def exporting(tiny):
    return ["export", "--model", tiny["model"], "--sae", tiny["sae"], "--format", "checkpoint", "--proof", "short"]


@pytest.mark.slow
def test_an_edit_by_hand_is_exported_and_proven(steering, exporting, tiny, active, tmp_path):
    often, some, _ = active
    found = json.loads(run("steer", "--feature", f"{often}=-5", "--feature", f"{HOOKPOINT}:{some}=0", *steering, "--preview", PROMPTS[0],
                           "--preview", PROMPTS[1], "--json").stdout)  # fmt: skip
    assert [f["multiplier"] for f in found["features"]] == ([-5.0, 0.0] if often < some else [0.0, -5.0])
    assert found["fired"][f"feature {often}"] > 0 and found["sha256"] == Edit.load(tmp_path / "e.safetensors").sha256()
    assert Image.open(tmp_path / "e.png").width > 2 * 150
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.png", "e.safetensors"]
    wanted = Settings((), tmp_path / "out", ("checkpoint",), str(tiny["model"]), (str(tiny["sae"]),), proof="short", edit=tmp_path / "e.safetensors",
                      proof_prompts=PROMPTS)  # fmt: skip
    result = export_artifact(wanted)
    check_plan(result, wanted)
    assert result.proven and result.manifest.concepts == sorted([f"feature {often}", f"feature {some}"])
    assert result.manifest.edit.sha256 == found["sha256"] and result.manifest.sampling.steps == 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "steered: feature " in card and "without" not in card.split("## Open it")[0]
    # The prompts of the preview are those of the proof; the artifact's own edit file can be exported again, at another precision.
    inside = tmp_path / "out" / "edit" / "edit.safetensors"
    again = json.loads(run(*exporting, "--edit", inside, "--precision", "bf16", "--output", tmp_path / "again", "--json").stdout)
    assert again["proven"] and again["manifest"]["edit"]["sha256"] == found["sha256"]


@pytest.mark.slow
def test_an_edit_of_concepts_is_exported_from_its_file(exporting, tiny, tmp_path):
    first = export_artifact(Settings(("A", "B"), tmp_path / "one", ("checkpoint",), str(tiny["model"]), (str(tiny["sae"]),), HOOKPOINT, (str(tiny["activations"]),),
                                     "count:20", -3.0, steps=2, proof="short"))  # fmt: skip
    second = json.loads(
        run(*exporting, "--edit", tmp_path / "one" / "edit" / "edit.safetensors", "--output", tmp_path / "two", "--json").stdout
    )
    assert second["proven"] and second["manifest"]["edit"] == plain(first.manifest.edit)
    assert second["manifest"]["settings"] == plain(first.manifest.settings) and second["manifest"]["activations"] == plain(
        first.manifest.activations
    )
    # One that was made without any record is exported all the same.
    bare = Edit.load(tmp_path / "one" / "edit" / "edit.safetensors")
    bare.provenance = Provenance()
    bare.save(tmp_path / "bare.safetensors")
    shown = json.loads(run(*exporting, "--edit", tmp_path / "bare.safetensors", "--proof-prompt", "a", "--proof-prompt", "b", "--steps", 2,
                           "--output", tmp_path / "three", "--dry-run", "--json").stdout)  # fmt: skip
    assert [c["multiplier"] for c in shown["concepts"]] == [None, None] and set(shown["features"][HOOKPOINT]) == {"A", "B"}


def test_steer_refuses_what_cannot_be_meant(steering, tmp_path):
    (tmp_path / "there.safetensors").write_text("mine")
    for message, *options in (
        ("no feature named", *steering),
        ("expected N=NUMBER", "--feature", "3", *steering),
        ("is no feature", "--feature", "x=1", *steering),
        ("named twice", "--feature", "3=0", "--feature", "3=-1", *steering),
        ("--allow-amplify", "--feature", "3=2", *steering),
        ("changes nothing", "--feature", "3=1", *steering),
        ("no finite number", "--feature", "3=nan", *steering),
        ("features 0 to 255", "--feature", "256=0", *steering),
        ("not among the hookpoints", "--feature", "mid:3=0", *steering),
        ("larger one first", "--feature", "3=0", "--timesteps", "100-500", *steering),
        ("between 999 and 0", "--feature", "3=0", "--timesteps", "1500-500", *steering),
        ("did you mean keep", "--feature", "3=0", *steering, "--residual", "kept"),
        ("no base model", "--feature", "3=0", *steering[2:]),
        ("is not in this UNet", "--feature", "3=0", *put(steering, "--hookpoint", "up_blocks.7.attentions.0")),
        ("no SAE known", "--feature", "3=0", *steering[:2], *steering[4:]),
        ("no folder", "--feature", "3=0", *put(steering, "--sae", f"{HOOKPOINT}=/nowhere")),
        ("no hookpoint known", "--feature", "3=0", *steering[:4], *steering[6:]),
        ("to be a .safetensors file", "--feature", "3=0", *put(steering, "--output", tmp_path / "e.bin")),
        ("exists", "--feature", "3=0", *put(steering, "--output", tmp_path / "there.safetensors")),
    ):
        refused(message, "steer", *options)
    assert [p.name for p in tmp_path.iterdir()] == ["there.safetensors"]


def test_a_range_between_two_steps_is_said_to_do_nothing(steering, tmp_path):
    options = [*put(steering, "--steps", 2), "--feature", "3=-5", "--overwrite"]
    assert "none of 2 DDIM steps lies at timesteps 300-200" in run("steer", *options, "--timesteps", "300-200").stderr
    assert "none of" not in run("steer", *options, "--timesteps", "999-400").stderr
    refused("expected FROM-TO", "steer", *options, "--timesteps", "9" * 5000 + "-1")


@pytest.mark.slow
def test_export_refuses_edit_files_that_cannot_be_proven(steering, exporting, tiny, active, tmp_path):
    often = active[0]
    path = tmp_path / "e.safetensors"
    out = ["--output", tmp_path / "out"]
    run("steer", "--feature", f"{often}=3", "--allow-amplify", *steering, "--timesteps", "100-0")
    prompt = ["--proof-prompt", PROMPTS[0]]
    refused("give one of them", *exporting, "--edit", path, "--concepts", "A", *out)
    refused("give one of them", *exporting, "--edit", path, "--multiplier", "-1", *out)
    refused("holds no prompts", *exporting, "--edit", path, *out)
    refused("names no base model", "export", "--edit", path, *prompt, *out)
    refused("names no SAE", "export", "--edit", path, "--model", tiny["model"], *prompt, *out)
    refused("does nothing at this hookpoint", *exporting[:3], "--edit", path, "--sae", f"mid_block={tiny['sae']}", *prompt, *out)
    refused("strengthens features", *exporting, "--edit", path, *prompt, *out)
    refused("use --proof full", *exporting, "--edit", path, "--allow-amplify", *prompt, *out)
    refused("use --gate exact", *exporting, "--edit", path, "--allow-amplify", "--gate", "threshold", *prompt, *out)
    refused("is no edit file", *exporting, "--edit", tiny["activations"], *prompt, *out)
    refused("does not exist", *exporting, "--edit", tmp_path / "no.safetensors", *prompt, *out)
    make_sae(seed=9).save(tmp_path / "other" / f"unet.{HOOKPOINT}")
    refused("hashes differ", *exporting[:3], "--edit", path, "--sae", tmp_path / "other", "--allow-amplify", *prompt, *out)
    header, _ = read_header(path)
    tensors = load_file(path)
    save_file(tensors, path, metadata={**header, "chosen": json.dumps({HOOKPOINT: {}})})
    refused("which concept", *exporting, "--edit", path, "--allow-amplify", *prompt, *out)
    save_file(tensors, path, metadata={**header, "chosen": json.dumps([1])})
    refused("damaged edit", *exporting, "--edit", path, "--allow-amplify", *prompt, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_edit_by_hand_that_never_fires_is_not_proven(steering, exporting, active, tmp_path):
    run("steer", "--feature", f"{active[2]}=0", *steering)
    shown = run(*exporting, "--edit", tmp_path / "e.safetensors", "--proof-prompt", PROMPTS[0], "--output", tmp_path / "out", code=1)
    assert "never fired" in shown.stderr


@pytest.fixture
def looking(tiny, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    return [
        "features", "--model", tiny["model"], "--sae", tiny["sae"], "--hookpoint", HOOKPOINT, "--prompts", tmp_path / "p.txt", "--pictures", len(PROMPTS),
        "--steps", 4, "--guidance", 3, "--height", 16, "--width", 24, "--batch-size", 2, "--rows", 3, "--columns", 2, "--output", tmp_path / "out",
    ]  # fmt: skip


def test_features_are_those_of_a_brute_force_search(looking, seen, active, tmp_path, monkeypatch):
    monkeypatch.setattr("saeuron.editor.features.feature_maps.draw_prompts", lambda prompts, count, seed: list(prompts)[:count])
    found = json.loads(run(*looking, "--features", ",".join(map(str, active)), "--json").stdout)
    assert found == json.loads((tmp_path / "out" / "features.json").read_text())
    for entry, number in zip(found["features"], active, strict=True):
        maps = torch.stack([z[:, number] for z, _, _ in seen])  # [pictures, T, h, w]
        scores = maps.mean((2, 3)).amax(1)
        assert entry["timesteps"] == seen[0][2] and entry["pictures"] == len(PROMPTS)
        assert entry["active_in"] == int((maps.amax((1, 2, 3)) > 0).sum())
        expected = [int(i) for i in scores.argsort(descending=True, stable=True) if scores[i] > 0][:3]
        assert [t["picture"] for t in entry["top"]] == expected
        for key, values in (
            ("mean", maps.mean((0, 2, 3))),
            ("max", maps.amax((0, 2, 3))),
            ("active_tokens", (maps > 0).float().mean((0, 2, 3))),
        ):
            np.testing.assert_allclose(entry[key], values.numpy(), rtol=1e-3, atol=1e-5)
        for t in entry["top"]:
            own = maps[t["picture"]]
            assert t["prompt"] == PROMPTS[t["picture"]] and t["seed"] == 42 + t["picture"]
            np.testing.assert_allclose(t["mean"], own.mean((1, 2)).numpy(), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(t["max"], own.amax((1, 2)).numpy(), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(t["active_tokens"], (own > 0).float().mean((1, 2)).numpy(), rtol=1e-3, atol=1e-5)
    often, some, never = active
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [f"{often}.png", f"{some}.png", "features.json", "maps.safetensors", "pictures"]
    )
    # What a report draws: the very maps and pictures.
    stored = load_file(tmp_path / "out" / "maps.safetensors")
    assert set(stored) == {f"{HOOKPOINT}/{often}", f"{HOOKPOINT}/{some}"} and found["saes"] == {HOOKPOINT: make_sae().sha256()}
    for entry in found["features"][:2]:
        values = stored[f"{HOOKPOINT}/{entry['feature']}"]
        for t, own in zip(entry["top"], values, strict=True):
            np.testing.assert_allclose(own.numpy(), seen[t["picture"]][0][:, entry["feature"]].numpy(), rtol=1e-3, atol=1e-4)
            made, alone = np.asarray(Image.open(tmp_path / "out" / t["file"]), int), np.asarray(seen[t["picture"]][1], int)
            assert np.abs(made - (alone if alone.max() > 1 else alone * 255)).max() <= 1
    assert found["features"][2]["sheet"] is None and found["features"][2]["top"] == []
    sheet = Image.open(tmp_path / "out" / f"{often}.png")
    assert sheet.width > 4 * 144 and sheet.height > 3 * 96


@pytest.mark.slow
def test_features_by_concept_take_what_select_shows(tmp_path):
    chosen: dict[str, dict[int, None]] = {}
    for entry in json.loads(run("select", "--concepts", "Neon,House", "--json").stdout)["concepts"]:
        chosen.setdefault(entry["hookpoint"], {}).update(dict.fromkeys(f["feature"] for f in entry["features"][:2]))
    run("features", "--concepts", "Neon,House", "--limit", 2, "--pictures", 4, "--steps", 2, "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert len(chosen) == 2
    assert [(f["hookpoint"], f["feature"]) for f in found["features"]] == [(h, n) for h, numbers in chosen.items() for n in numbers]
    assert found["features"][0]["concepts"] == ["Neon"] and found["guidance"] == 3.0
    assert all((tmp_path / "out" / f["sheet"]).is_file() for f in found["features"] if f["sheet"])
    refused("exists", "features", "--concepts", "Neon", "--output", tmp_path / "out")
    run("features", "--concepts", "Neon", "--limit", 1, "--pictures", 2, "--steps", 2, "--output", tmp_path / "out", "--overwrite")
    again = json.loads((tmp_path / "out" / "features.json").read_text())["features"]
    assert [f["hookpoint"] for f in again] == list(chosen)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_features_refuses_what_cannot_be_meant(looking, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "empty.txt").write_text("\n")
    one = ["--features", "3"]
    refused("one of the two", *looking)
    refused("one of the two", *looking, *one, "--concepts", "Neon")
    refused("is no feature", *looking, "--features", "3,x")
    refused("features 0 to 255", *looking, "--features", "999")
    refused("--pictures is 0", *put(looking, *one, "--pictures", 0))
    refused("multiple of 8", *put(looking, *one, "--height", 20))
    refused("no line holds a prompt", *put(looking, *one, "--prompts", tmp_path / "empty.txt"))
    refused("2 hookpoints", *put(looking, *one, "--hookpoint", f"{HOOKPOINT},up_blocks.1.attentions.0"))
    refused("no folder of feature sheets", *put(looking, *one, "--output", tmp_path / "mine", "--overwrite"))
    refused("did you mean Neon", "features", "--concepts", "Neom", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "mine" / "a.txt").read_text() == "mine"


def test_pictures_are_drawn_where_they_belong():
    values = np.zeros((2, 3))
    values[0, 2] = 1.0
    shown = np.asarray(heat(Image.new("RGB", (60, 40), "white"), values, 1.0)).astype(int)
    hot = (shown.max(-1) - shown.min(-1)) > 0
    assert hot[:20, 40:].all() and not hot[20:].any() and not hot[:, :40].any()
    sheet = picture_rows(
        [("a", [Image.new("RGB", (48, 32), "red")] * 2), ("b", [Image.new("RGB", (48, 32), "blue")] * 2)], 96, ["long " * 40, ""]
    )
    assert sheet.width == 2 * (96 + 6) + 6
    pixels = np.asarray(sheet).astype(int)
    assert (pixels == [255, 0, 0]).all(-1).sum() == (pixels == [0, 0, 255]).all(-1).sum() == 2 * 96 * 64


def test_settings_of_an_edit_name_no_concepts(tmp_path):
    from saeuron.export.plan.resolve import resolve

    with pytest.raises(SaeuronError, match="or --edit FILE"):
        resolve(Settings((), tmp_path / "out"))
