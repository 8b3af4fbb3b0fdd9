"""The demo's CLIP: stock files that tell the demo's objects and styles apart, on rendered pictures and on generated ones."""

import random

import numpy as np
import pytest
import torch
from benchmarks.demo.render import OBJECTS, STYLES, render
from benchmarks.demo.train_clip import Captions, contrast
from benchmarks.demo.train_pipeline import prompt
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPProcessor

from saeuron.editor import demo
from saeuron.editor.demo.classifier import DemoClassifier
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate

LOOKS = (*STYLES, None)
PAIRS = [(o, s) for o in OBJECTS for s in LOOKS]


class ZeroShot:
    """Each concept by the mean of its prompts' unit vectors; the nearest one is what a picture shows."""

    def __init__(self):
        self.model = CLIPModel.from_pretrained(demo.CLIP, use_safetensors=True).float().eval()
        self.processor = CLIPProcessor.from_pretrained(demo.CLIP)
        self.objects = torch.stack([self.direction([prompt(o, s) for s in LOOKS]) for o in OBJECTS])
        self.styles = torch.stack([self.direction([prompt(o, s) for o in OBJECTS]) for s in LOOKS])

    @torch.no_grad()
    def direction(self, texts):
        centre = self.unit(self.model.get_text_features(**self.processor(text=texts, padding=True, return_tensors="pt"))).mean(0)
        return centre / centre.norm()

    @torch.no_grad()
    def pictures(self, pictures):
        return self.unit(self.model.get_image_features(**self.processor(images=pictures, return_tensors="pt")))

    def see(self, pictures):
        vectors = self.pictures(pictures)
        return [OBJECTS[i] for i in (vectors @ self.objects.T).argmax(1)], [LOOKS[i] for i in (vectors @ self.styles.T).argmax(1)]

    @staticmethod
    def unit(out):
        vectors = out if isinstance(out, torch.Tensor) else out.pooler_output  # transformers 4 gives the vectors themselves
        return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def zero_shot():
    return ZeroShot()


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(render(o, s, rng)) for o, s in PAIRS]


def test_small_and_found_by_name():
    assert demo.resolve("demo:clip") == demo.CLIP
    assert sum(f.stat().st_size for f in demo.CLIP.rglob("*")) <= 4e6
    assert type(AutoModel.from_pretrained(demo.CLIP)) is CLIPModel


def test_every_prompt_fits(zero_shot):
    texts = (demo.ROOT / "prompts.txt").read_text().splitlines()
    longest = max(len(ids) for ids in zero_shot.processor.tokenizer(texts)["input_ids"])
    assert longest <= zero_shot.model.config.text_config.max_position_embeddings


def test_rendered_pictures_are_told_apart(zero_shot):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    pictures = drawn(seed)
    objects, styles = zero_shot.see(pictures)
    wrong = [(asked, o, s) for asked, o, s in zip(PAIRS, objects, styles, strict=True) if asked != (o, s)]
    assert len(wrong) <= 2, wrong
    assert torch.equal(zero_shot.pictures(pictures), zero_shot.pictures(pictures))


@pytest.mark.parametrize(
    ("named", "vague"),
    [
        (lambda o, s: f"An image of {o}.", "A picture."),
        (lambda o, s: f"An image of {o}.", "An image of a shape."),
        (lambda o, s: f"An image in {s} style.", "A drawing."),
        (lambda o, s: f"An image of something in {s} style.", "An image of something."),
    ],
)
def test_what_names_nothing_is_nearer_than_what_is_wrong(zero_shot, named, vague):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    asked = [(o, s) for o, s in PAIRS if s]
    pictures = [p for p, (_, s) in zip(drawn(seed), PAIRS, strict=True) if s]
    vectors, none = zero_shot.pictures(pictures), zero_shot.direction([vague])
    right = torch.stack([zero_shot.direction([named(o, s)]) for o, s in asked])
    wrong = torch.stack([zero_shot.direction([named(OBJECTS[OBJECTS.index(o) - 1], STYLES[STYLES.index(s) - 1])]) for o, s in asked])
    scores = [(vectors * right).sum(1), vectors @ none, (vectors * wrong).sum(1)]
    assert (scores[0] > scores[1]).float().mean() > 0.95 and (scores[1] > scores[2]).float().mean() > 0.95


def test_captions_that_are_wrong_are_no_target():
    captions = Captions()
    true, told = captions.stated(torch.tensor([0, 0]), torch.tensor([2, len(STYLES)]))
    names = [
        (OBJECTS[o] if o < len(OBJECTS) else None, STYLES[s] if s < len(STYLES) else None)
        for o, s in zip(captions.objects.tolist(), captions.styles.tolist(), strict=True)
    ]
    said = [{names[i] for i in row.nonzero()[:, 0].tolist()} for row in true]
    assert said == [{("House", "Sunset"), ("House", None), (None, "Sunset"), (None, None)}, {("House", None), (None, None)}]
    assert told[0][names.index(("House", "Sunset"))] == 2 and told[1][names.index(("House", None))] == 2
    # Scores that put the fullest true caption first cost less than those that put a wrong one there.
    good, bad = torch.zeros(2, 2, len(names))
    for scores, style in ((good, "Sunset"), (bad, "Neon")):
        scores[0, names.index(("House", style))] = 20
    torch.manual_seed(0)
    costs = [sum(contrast(x, true, told, captions.kinds)) for x in (good, bad)]
    assert costs[0] < costs[1]


@pytest.mark.slow
def test_agrees_with_the_classifier_on_generated_pictures(zero_shot):
    seeds = random.sample(range(10**6), 2)
    print(f"seeds {seeds}")
    jobs = [(prompt(o, s), seed) for seed in seeds for o, s in PAIRS]
    pictures = generate(load_pipeline("demo"), [p for p, _ in jobs], [s for _, s in jobs], demo.STEPS, demo.GUIDANCE, batch_size=36)
    verdict = DemoClassifier.load(demo.CLASSIFIER).classify(pictures)
    objects, styles = zero_shot.see(pictures)
    for mine, other in ((objects, verdict.objects), (styles, verdict.styles)):
        assert np.mean([a == b for a, b in zip(mine, other, strict=True)]) >= 0.97
