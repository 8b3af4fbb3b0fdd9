"""CLIP score by a real CLIPModel with random weights: against a plain computation, picture by picture."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import refused, run
from tests.validation.test_evaluate import rows_of
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.validation.evidence.clip_score import ClipScore, figures
from saeuron.validation.evidence.verdicts import Wanted

_PLACES = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a small CLIP with the demo's tokenizer; it reads 10 tokens."""
    folder = tmp_path_factory.mktemp("clip") / "small-clip"
    tokenizer = load_pipeline("demo").tokenizer
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small, "vocab_size": len(tokenizer), "max_position_embeddings": _PLACES, "projection_dim": 16, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def plain_score(folder, file, prompt):
    """One picture, one prompt, its first ten tokens, no padding."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    ids = processor.tokenizer(prompt)["input_ids"]
    ids = [*ids[: _PLACES - 1], ids[-1]] if len(ids) > _PLACES else ids
    pixels = processor.image_processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0].double()
        said = model.text_projection(model.text_model(torch.tensor([ids])).pooler_output)[0].double()
    return float(100 * (seen @ said) / (seen.norm() * said.norm()))


def test_scores_are_cosines_and_cut_prompts_are_counted(clip, tmp_path):
    prompts = ["An image of Car.", "x", "An image of House in Neon style. " * 4]
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(file)
    scorer = ClipScore(str(clip))
    rows = scorer.look(files, [Wanted(str(i), p, 0, 1.0) for i, p in enumerate(prompts)])
    for row, file, prompt in zip(rows, files, prompts, strict=True):
        assert float(row["clip_score"]) == pytest.approx(plain_score(clip, file, prompt), abs=1e-3)
    cut = [int(row["tokens_cut"]) for row in rows]
    assert cut[:2] == [0, 0] and cut[2] == len(load_pipeline("demo").tokenizer(prompts[2])["input_ids"]) - _PLACES > 0
    assert scorer.name == "CLIP small-clip"


def test_mean_and_change_are_counted_by_hand():
    before = [{"clip_score": s, "tokens_cut": "0"} for s in ("10.0", "20.0", "30.0")]
    after = [{"clip_score": s, "tokens_cut": c} for s, c in (("11.0", "0"), ("19.0", "3"), ("33.0", "0"))]
    found = figures(after, before)
    assert found.clip_score.mean == 21 and found.prompts_cut == 1 and found.clip_change.count == 3
    half = 1.959964 * 2 / 3**0.5  # changes 1, -1, 3: mean 1, deviation 2
    assert found.clip_change.mean == 1
    assert (found.clip_change.low, found.clip_change.high) == pytest.approx((1 - half, 1 + half), rel=1e-6)
    assert figures(after, None).clip_change is None and figures(after[:1], None).clip_score.low is None


@pytest.mark.slow
def test_evaluate_measures_utility_on_prompts_of_ones_own(demo_artifact, clip, tmp_path):
    (tmp_path / "p.txt").write_text(
        "An image of Car.\nAn image of House in Neon style, with a long text after it that goes on.\nAn image of Star.\n"
    )
    options = ["evaluate", demo_artifact.path, "--clip", clip, "--prompts", tmp_path / "p.txt", "--steps", 2, "--backend", "checkpoint,onnx", "-o", tmp_path / "e"]  # fmt: skip
    found = json.loads(run(*options, "--json").stdout)
    rows = rows_of(tmp_path / "e")
    assert found["settings"]["protocol"] == "utility" and found["settings"]["judges"][0]["name"] == "CLIP small-clip"
    scores = {b: [float(r["clip_score"]) for r in rows if r["backend"] == b] for b in ("unedited", "checkpoint", "onnx")}
    for backend, own in scores.items():
        said = found["backends"][backend]
        assert said["clip_score"]["mean"] == pytest.approx(np.mean(own)) and said["clip_score"]["count"] == 3 and said["prompts_cut"] == 1
        if backend != "unedited":
            assert said["clip_change"]["mean"] == pytest.approx(np.mean(np.subtract(own, scores["unedited"])), abs=1e-9)
    assert "clip_change" not in found["backends"]["unedited"] and found["distances"] == []
    (beside,) = found["comparison"]
    assert beside["largest_clip_difference"] == max(abs(a - b) for a, b in zip(scores["onnx"], scores["checkpoint"], strict=True))
    assert "same_verdicts" not in beside
    shown = run(*options).stdout
    assert "CLIP score" in shown and "1 prompt was longer than CLIP reads" in shown and "same verdict" not in shown
    refused("scores are none", *options, "--compare")


def test_refuses_what_is_no_whole_clip_model(clip, demo_artifact, tmp_path):
    for name, spoil, message in (
        ("none", lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "is no CLIP or SigLIP model"),
        ("pickle", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights are not opened"),
        ("cut", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900]), "truncated"),
        ("part", _without_a_weight, "lacks the weight 'visual_projection.weight'"),
        ("large", lambda f: _config(f, "hidden_size", 2**40), "can't be read|its config says"),
        ("wide", lambda f: _config(f, "intermediate_size", 10**6), r"of shape .64, 32., its config says .1000000, 32."),
        ("deep", lambda f: _config(f, "num_hidden_layers", 10**9), "claims 1000000000 layers"),
        ("words", lambda f: [p.unlink() for p in f.glob("tok*")] + [p.unlink() for p in f.glob("*processor*")], "can't be read"),
    ):
        folder = shutil.copytree(clip, tmp_path / name)
        spoil(folder)
        with pytest.raises(SaeuronError, match=message):
            ClipScore(str(folder))
    with pytest.raises(SaeuronError, match="no folder 'nowhere' here"):
        ClipScore("nowhere")
    (tmp_path / "p.txt").write_text("a\n")
    there = ["evaluate", demo_artifact.path, "-o", tmp_path / "e"]
    refused("--clip needs prompts", *there, "--clip", clip)
    refused("--prompts goes with", *there, "--prompts", tmp_path / "p.txt")
    refused("two evaluations", *there, "--clip", clip, "--nudenet", "--prompts", tmp_path / "p.txt")
    refused("leave these out", *there, "--clip", clip, "--prompts", tmp_path / "p.txt", "--objects", "Car")
    refused("not with --prompts", *there, "--clip", clip, "--prompts", tmp_path / "p.txt", "--sequential")
    assert not (tmp_path / "e").exists()


def _config(folder, key, value):
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(content))


def _without_a_weight(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
