"""Judges that are told by words what to look for, by real models with small random weights, against plain computations."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.features.prompt_sets import ConceptPrompts, ContrastPrompts
from saeuron.validation.judges.choose import open_judge, open_judges

WORDS = {
    "Car": ConceptPrompts("Car", "object", ["An image of Car.", "A picture of Car."], [], {
        "House": ContrastPrompts(["An image of House."], [], True), "things": ContrastPrompts(["A picture."], [], False),
    }),
}  # fmt: skip
NUDE = {"bare": ConceptPrompts("bare", "nudity", ["a"], [], {"dressed": ContrastPrompts(["b"], [], False)})}


def pictures(count, size=40):
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (size + i, 50, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "small-clip"
    tokenizer = load_pipeline("demo").tokenizer
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 10, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(3)
    CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)).save_pretrained(
        folder
    )
    image = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=image, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "vit"
    torch.manual_seed(1)
    config = ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
                       id2label={0: "car", 1: "green house", 2: "sea"}, label2id={"car": 0, "green house": 1, "sea": 2})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_sees_what_lies_nearest_to_the_mean_of_a_sets_prompts(clip):
    judge, looked = open_judge(f"clip={clip}", WORDS), pictures(6)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    means = {}
    for name, texts in {"Car": WORDS["Car"].prompts, "House": ["An image of House."], "things": ["A picture."]}.items():
        rows = []
        for text in texts:
            with torch.no_grad():
                out = model.text_projection(model.text_model(torch.tensor([processor.tokenizer(text)["input_ids"]])).pooler_output)[0]
            rows.append(out / out.norm())
        mean = torch.stack(rows).mean(0)
        means[name] = mean / mean.norm()
    found = judge.see(looked)
    assert judge.concepts == ("Car", "House") and found.seen.shape == found.scores.shape == (6, 2)
    for i, picture in enumerate(looked):
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        cosines = {n: float(out / out.norm() @ m) for n, m in means.items()}
        nearest = max(cosines, key=cosines.get)
        assert found.seen[i].tolist() == [nearest == "Car", nearest == "House"]
        shares = torch.tensor(list(cosines.values())).mul(float(model.logit_scale.exp())).softmax(0)
        assert found.scores[i] == pytest.approx(shares[:2].numpy(), abs=1e-4)


def test_its_hash_holds_weights_and_words(clip):
    other = {"Car": ConceptPrompts("Car", "object", ["A car."], [], WORDS["Car"].contrast)}
    assert open_judge(f"clip={clip}", WORDS).sha256 == open_judge(f"clip={clip}", WORDS).sha256 != open_judge(f"clip={clip}", other).sha256


def test_clip_refuses_what_it_cannot_read_or_tell_apart(clip, tmp_path):
    long = {"Car": ConceptPrompts("Car", "object", ["An image of Car in Neon style on a hill by the sea."], [], WORDS["Car"].contrast)}
    with pytest.raises(SaeuronError, match=r"reads 10 tokens, and a prompt of 'Car' has \d+: 'An image of Car in Neon"):
        open_judge(f"clip={clip}", long)
    with pytest.raises(SaeuronError, match="'Car' has nothing to be told from"):
        open_judge(f"clip={clip}", {"Car": ConceptPrompts("Car", "object", ["a"], [], {})})
    text = CLIPTextConfig(vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(text).save_pretrained(tmp_path / "half")
    with pytest.raises(SaeuronError, match="without the projection"):
        open_judge(f"clip={tmp_path / 'half'}", WORDS)
    with pytest.raises(SaeuronError, match="no folder 'nowhere' here"):
        open_judge("clip=nowhere", WORDS)
    with pytest.raises(SaeuronError, match="looks for a concept by its words"):
        open_judge(f"clip={clip}")


def test_a_classifiers_labels_are_concepts_or_stand_for_one(classifier, tmp_path):
    model, processor = ViTForImageClassification.from_pretrained(classifier).eval(), ViTImageProcessor.from_pretrained(classifier)
    looked = pictures(8)
    with torch.no_grad():
        shares = torch.cat([model(**processor(p, return_tensors="pt")).logits for p in looked]).softmax(1).numpy()
    words = {n: ConceptPrompts(n, "object", [n], [], {}) for n in ("Car", "Green_house", "Tree")}
    found = open_judge(f"classifier={classifier}", words)
    assert found.concepts == ("Car", "Green_house"), "by name, whatever the case; a tree it doesn't know"
    seen = found.see(looked)
    assert (seen.seen == np.stack([shares.argmax(1) == 0, shares.argmax(1) == 1], 1)).all() and seen.scores == pytest.approx(
        shares[:, :2], abs=1e-5
    )
    together = open_judge(f"classifier={classifier}:car,sea", {"vehicle": ConceptPrompts("vehicle", "object", ["v"], [], {})})
    both = together.see(looked)
    assert (both.seen[:, 0] == np.isin(shares.argmax(1), [0, 2])).all() and both.scores[:, 0] == pytest.approx(
        shares[:, [0, 2]].sum(1), abs=1e-5
    )
    for wrong, message in (
        (f"classifier={classifier}:cat", "label 'cat' is not known"), (f"classifier={classifier}:", "ends without a label"), ("classifier", "say where it lies"),
    ):  # fmt: skip
        with pytest.raises(SaeuronError, match=message):
            open_judge(wrong, {"vehicle": ConceptPrompts("vehicle", "object", ["v"], [], {})})
    lacking = shutil.copytree(classifier, tmp_path / "lacking")
    held = load_file(lacking / "model.safetensors")
    save_file({n: t for n, t in held.items() if n != "classifier.weight"}, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SaeuronError, match="lacks the weight 'classifier.weight'"):
        open_judge(f"classifier={lacking}", words)
    with pytest.raises(SaeuronError, match="can stand for one concept, and there are 3"):
        open_judge(f"classifier={classifier}:car", words)


def test_a_multi_label_classifier_sees_what_is_likelier_than_not(classifier, tmp_path):
    model = ViTForImageClassification.from_pretrained(classifier)
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor.from_pretrained(classifier).save_pretrained(tmp_path / "vit")
    looked = pictures(8)
    found = open_judge(f"classifier={tmp_path / 'vit'}", {"car": ConceptPrompts("car", "object", ["c"], [], {})}).see(looked)
    processor = ViTImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        shares = torch.cat([model(**processor(p, return_tensors="pt")).logits for p in looked]).sigmoid().numpy()[:, 0]
    assert found.scores[:, 0] == pytest.approx(shares, abs=1e-5) and (found.seen[:, 0] == (shares > 0.5)).all()


def test_every_concept_needs_a_judge_that_sees_it(classifier):
    words = {**{n: ConceptPrompts(n, "object", [n], [], {}) for n in ("car", "Neon")}}
    assert [j.name for j in open_judges(["demo", f"classifier={classifier}"], words)] == ["demo", "classifier vit"]
    with pytest.raises(SaeuronError, match="concept 'sea' is not known to the judge 'demo'"):
        open_judges(["demo"], {"sea": ConceptPrompts("sea", "object", ["s"], [], {})})
    with pytest.raises(SaeuronError, match="concept 'car' is not known to the judge 'demo'"):
        open_judges(["demo"], words)
    with pytest.raises(SaeuronError, match="named twice"):
        open_judges(["demo", "demo"], {"Neon": words["Neon"]})


def test_nudenet_finds_the_face_of_a_dressed_person_and_no_nudity():
    """On a real photograph, which matplotlib's wheel ships."""
    pytest.importorskip("nudenet")
    where = importlib.util.find_spec("matplotlib")
    photo = Path(where.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg" if where and where.origin else Path("none")
    judge = open_judge("nudenet", NUDE)
    assert judge.concepts == ("bare",) and "0.6" in judge.name
    blank = Image.new("RGB", (320, 320), "white")
    assert not judge.see([blank]).seen.any()
    if not photo.is_file():
        pytest.skip("matplotlib's photograph is not there")
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    found = judge.see([picture, blank])
    assert found.seen.tolist() == [[False], [False]] and found.scores.max() < 0.6
    (seen, none) = judge._net.detections([picture, blank])
    assert none == {} and max(s for name, scores in seen.items() if name.startswith("FACE") for s in scores) > 0.5
    # The same as the package's own reading of the file.
    assert seen == {hit["class"]: [round(hit["score"], 4)] for hit in judge._net._detector.detect(str(photo))}


def test_nudenet_counts_only_exposed_classes_of_its_score(monkeypatch):
    pytest.importorskip("nudenet")
    judge = open_judge("nudenet=0.5", NUDE)
    said = [{"FEMALE_BREAST_EXPOSED": [0.49], "FACE_FEMALE": [0.99]}, {"BUTTOCKS_EXPOSED": [0.2, 0.5]}, {"BELLY_EXPOSED": [0.9]}]
    monkeypatch.setattr(judge._net, "detections", lambda pictures: said)
    found = judge.see([None] * 3)
    assert found.seen[:, 0].tolist() == [False, True, False] and found.scores[:, 0] == pytest.approx([0.49, 0.5, 0])
    with pytest.raises(SaeuronError, match="nudenet sees nudity alone, and of that kind is none of: Car"):
        open_judge("nudenet", WORDS)
