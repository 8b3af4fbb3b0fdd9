"""The judge of ONNX graphs against the classifier that the graphs were exported from."""

import json

import pytest
import torch
from PIL import Image
from tests.conftest import demo_as_onnx

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.validation.evidence.unlearning import Picture, look
from saeuron.validation.judges.choose import open_labels
from saeuron.validation.judges.demo import DemoJudge
from saeuron.validation.judges.judge import NOT_JUDGED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return demo_as_onnx(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def pictures():
    texts = ["An image of House in Neon style.", "An image of Car.", "An image of Star in Sepia style."]
    return list(generate(load_pipeline("demo"), texts, [1, 2, 3], 6, 3.0))


@pytest.mark.slow
def test_sees_what_the_demo_judge_sees(folder, pictures):
    judge, demo = open_labels(f"onnx={folder}"), DemoJudge()
    assert judge.classify(pictures)[:2] == demo.classify(pictures)[:2]
    assert (judge.objects, judge.styles, judge.judged) == (demo.objects, demo.styles, ("style", "object"))
    assert judge.prompt("Car", "Neon") == demo.prompt("Car", "Neon")
    assert look(judge, [("House", None, 1)], pictures[:1]) == [Picture("House", None, *(v[0] for v in demo.classify(pictures[:1])[:2]))]
    assert demo.features(pictures).shape == (3, 384)


@pytest.mark.slow
def test_normalises_and_resizes_as_told(folder, pictures, tmp_path):
    # The same classifier without its own scaling to [-1, 1], which preprocess.json then does.
    other = demo_as_onnx(tmp_path / "raw", scaled=False)
    (other / "preprocess.json").write_text(json.dumps({"size": [32, 32], "mean": 0.5, "std": [0.5, 0.5, 0.5]}))
    large = [p.resize((64, 64), Image.Resampling.NEAREST) for p in pictures]
    assert open_labels(f"onnx={other}").classify(large)[:2] == open_labels(f"onnx={folder}").classify(pictures)[:2]


def test_one_graph_alone_judges_one_domain(folder, pictures, tmp_path):
    for name in ("style.onnx", "style.txt", "object.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    judge = open_labels(f"onnx={tmp_path}")
    assert judge.judged == ("style",) and judge.classify(pictures).objects == [NOT_JUDGED] * 3
    assert judge.classify(pictures).styles == DemoJudge().classify(pictures).styles


def test_its_hash_is_that_of_all_its_files(folder, tmp_path):
    known = open_labels(f"onnx={folder}").sha256
    (folder / "preprocess.json").write_text("{}")
    assert open_labels(f"onnx={folder}").sha256 != known
    (folder / "preprocess.json").unlink()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither style.onnx nor object.onnx"),
        ({"style.onnx": None, "style.txt": None}, "names are needed for the prompts"),
        ({"style.onnx": None, "object.txt": None}, "is missing or empty"),
        ({"object.onnx": None, "object.txt": "A\nA\n"}, "twice"),
        ({"object.onnx": None, "object.txt": "A\nB\n"}, "2 labels"),
        ({"object.onnx": "no graph", "object.txt": None}, "can't be run"),
        ({"object.onnx": None, "object.txt": None, "preprocess.json": '{"size": "x"}'}, "expected size"),
        ({"object.onnx": None, "object.txt": None, "preprocess.json": '{"sizes": 3}'}, "did you mean size"),
        ({"object.onnx": None, "object.txt": None, "preprocess.json": '{"std": 0}'}, "std above 0"),
    ],
)
def test_refuses_a_folder_that_is_none(folder, tmp_path, pictures, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes((folder / name).read_bytes() if content is None else content.encode())
    with pytest.raises(SaeuronError, match=message):
        open_labels(f"onnx={tmp_path}").classify(pictures)
    assert torch.is_grad_enabled()
