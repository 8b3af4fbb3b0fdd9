"""The demo's second model, a small SD3: its files, presets of its own, and the main job on it."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tests.conftest import check_plan, run

from saeuron.editor import demo
from saeuron.editor.common.files import read_json
from saeuron.editor.common.names import file_of, normalise
from saeuron.editor.denoisers.families import family_of
from saeuron.editor.denoisers.pipelines import load_pipeline, load_texts, locate, open_folder
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.features.concepts import presets, shipped
from saeuron.export.formats.tracing import _cropping
from saeuron.export.plan.resolve import resolve, to_fetch
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.judges.demo import DemoJudge
from saeuron.validation.trust.verify import verify

MODEL = "demo:dit"
PAIRS = [("House", "Neon"), ("Car", "Sunset"), ("Star", "Tiles"), ("Boat", "Stripes"), ("Heart", "Sepia"), ("Cactus", "Halftone")]


def test_its_files_are_small_and_named_for_any_file_system():
    files = [p for p in (demo.ROOT / "dit").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12 * 10**6
    assert not [p for p in files if set(':*?"<>|') & set(p.name)]


def test_its_parts_fit_and_prompts_are_padded_to_what_its_t5_takes():
    folder = open_folder(MODEL)
    assert folder == locate(MODEL) == demo.MODELS[MODEL]
    texts = load_texts(folder)
    family = family_of(texts)
    assert family.calling(texts) == {"max_sequence_length": 24} and family.text_tokens(texts) == 48
    # A T5 of the usual kind takes more than a pipeline pads to.
    texts.tokenizer_3.model_max_length = 512
    assert family.calling(texts) == {"max_sequence_length": 256} and family.text_tokens(texts) == 24 + 256


def test_names_mean_the_presets_of_the_model_that_is_asked_for():
    mine = {c.name: c for c in shipped() if c.model == MODEL}
    first = presets()
    assert len(mine) == 16 and {first[name].model for name in mine} == {"demo"}
    assert all(presets(model=MODEL)[name] == concept for name, concept in mine.items())
    # A model that has none of a name gets the first's, as before there were two.
    assert presets(model="elsewhere")["Neon"] == first["Neon"] and presets(model=MODEL)["nudity"] == first["nudity"]
    for name in ("Neon", "House"):
        assert mine[name].test_prompts == first[name].test_prompts and mine[name].prompts == first[name].prompts
    plan = resolve(Settings(("Neon",), "out", model=MODEL))
    assert plan.model == MODEL and plan.concepts["Neon"] == mine["Neon"] and {w.status for w in plan.wishes} == {mine["Neon"].status}
    assert resolve(Settings(("Neon",), "out")).model == "demo" and to_fetch(plan) == []


def test_every_preset_has_its_sae_and_activations():
    for concept in (c for c in shipped() if c.model == MODEL):
        plan = resolve(Settings((concept.name,), "out", model=MODEL))
        assert to_fetch(plan) == [], concept.name
        for hookpoint in concept.hookpoint.split(","):
            name = file_of(normalise(hookpoint))
            assert (demo.ROOT / "dit" / "saes" / name / "cfg.json").is_file()
            assert (demo.ROOT / "dit" / f"{concept.domain}-{name}.safetensors").is_file()


def test_a_dry_run_writes_nothing(tmp_path):
    found = run("export", "--concepts", "Neon", "--model", MODEL, "--output", tmp_path / "out", "--dry-run")
    assert "transformer/" in found.output and not (tmp_path / "out").exists()


def test_its_presets_are_listed():
    found = run("concepts", "--model", MODEL)
    assert "Neon" in found.output and "transformer_blocks" in found.output and "up_blocks" not in found.output


@pytest.mark.parametrize("most", [7, 8])
def test_the_crop_of_positions_that_is_traced_is_diffusers(most):
    """Of even and odd sides; that the exporter keeps it, the proof shows below."""
    from diffusers.models.embeddings import PatchEmbed

    table = PatchEmbed(height=8, width=8, patch_size=2, in_channels=1, embed_dim=4, pos_embed_max_size=most)
    sizes = [(2 * a, 2 * b) for a in range(1, most + 1) for b in range(1, most + 1)]
    expected = [table.cropped_pos_embed(*size) for size in sizes]
    with _cropping(table):
        assert all(torch.equal(table.cropped_pos_embed(*size), crop) for size, crop in zip(sizes, expected, strict=True))
    assert "cropped_pos_embed" not in vars(table)


@pytest.mark.slow
@pytest.mark.parametrize("stock", [False, True])
def test_it_draws_what_is_asked_for(stock):
    """Also as a stock client calls it, whose prompts have 256 tokens of T5 in the place of 24."""
    texts = [f"An image of {o} in {s} style." for o, s in PAIRS]
    seeds = list(range(70, 70 + len(texts)))
    if stock:
        pipeline = StableDiffusion3Pipeline.from_pretrained(demo.MODELS[MODEL])
        pipeline.set_progress_bar_config(disable=True)
        noise = [torch.Generator().manual_seed(s) for s in seeds]
        pictures = pipeline(texts, num_inference_steps=demo.STEPS, guidance_scale=demo.GUIDANCE, generator=noise).images
    else:
        pictures = list(generate(load_pipeline(MODEL), texts, seeds, demo.STEPS, demo.GUIDANCE))
    judge = DemoJudge()
    seen, names = judge.see(pictures).seen, judge.concepts
    right = sum(bool(row[names.index(o)] and row[names.index(s)]) for (o, s), row in zip(PAIRS, seen, strict=True))
    print(seeds, right)
    assert right >= len(PAIRS) - 1


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return export_artifact(
        Settings(("Neon",), tmp_path_factory.mktemp("dit") / "out", model=MODEL, formats=("checkpoint", "onnx"), proof="short")
    )


@pytest.mark.slow
def test_an_artifact_is_proven_and_proven_again(artifact):
    assert artifact.report.passed, artifact.report.failures
    assert set(artifact.report.backends) == {"checkpoint", "onnx"} and verify(artifact.path)["verified"]
    check_plan(artifact, Settings(("Neon",), artifact.path, model=MODEL, proof="short"))
    run("validate", artifact.path, "--backend", "checkpoint", "--model", MODEL, "--seed", 77)


@pytest.mark.slow
def test_older_clients_are_given_names_that_they_know(artifact):
    """optimum's transformers 4: `T5Tokenizer` would want SentencePiece's file there, and a list of `extra_special_tokens` breaks it."""
    assert read_json(artifact.path / "model_index.json")["tokenizer_3"] == ["transformers", "T5TokenizerFast"]
    settings = read_json(artifact.path / "tokenizer_3" / "tokenizer_config.json")
    assert "extra_special_tokens" not in settings and len(settings["additional_special_tokens"]) == 4
    ours, source = load_texts(artifact.path).tokenizer_3, load_texts(open_folder(MODEL)).tokenizer_3
    assert ours("a cat <extra_id_1>").input_ids == source("a cat <extra_id_1>").input_ids


@pytest.mark.slow
def test_its_graph_takes_pictures_with_an_odd_number_of_tokens_a_side(artifact):
    """3 × 5 tokens; the exporter's own crop of the positions fails there. And T5's table of positions isn't folded away."""
    import onnx

    golden = Golden.load(artifact.path / "edit" / "golden.safetensors")
    sides = {case.inputs["hidden_states"].shape[-2:] for case in golden.cases}
    assert any(h // 2 % 2 and w // 2 % 2 for h, w in sides), sides
    graph = onnx.load(artifact.path / "text_encoder_3" / "model.onnx").graph
    assert any(value.name.endswith("relative_attention_bias.weight") for value in graph.initializer)
