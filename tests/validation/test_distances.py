"""Distances from the unedited model's pictures and from a reference, on the demo classifier's features."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.conftest import refused, run
from tests.validation.test_evaluate import rows_of

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.evidence.distances import Distances, reference_files
from saeuron.validation.evidence.frechet import frechet
from saeuron.validation.judges.demo import DemoJudge


def pictures(folder, count, seed=0, size=(32, 32)):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


def features(files):
    """Pictures of one size at once, as a network takes them: alone, its last float32 bits differ, and few pictures magnify them."""
    judge, opened = DemoJudge(), [Image.open(f) for f in files]
    if len({picture.size for picture in opened}) == 1 and len(opened) <= 32:
        return judge.features(opened)
    return np.concatenate([judge.features([picture]) for picture in opened])


@pytest.mark.slow
def test_evaluate_takes_distances_from_a_reference_too(demo_artifact, tmp_path):
    pictures(tmp_path / "real" / "a", 3, 1)
    pictures(tmp_path / "real" / "b", 2, 2, (32, 40))  # another size
    (tmp_path / "real" / "notes.txt").write_text("no picture")
    options = ["evaluate", demo_artifact.path, "--reference", tmp_path / "real", "--backend", "onnx", "--steps", 2, "--objects", "House,Car", "--styles", "plain", "--seeds", "1,2", "-o", tmp_path / "e"]  # fmt: skip
    found = json.loads(run(*options, "--json").stdout)
    assert found["reference"]["pictures"] == 5 and found["reference"]["folder"] == "real"
    files = {b: [tmp_path / "e" / r["file"] for r in rows_of(tmp_path / "e") if r["backend"] == b] for b in ("unedited", "onnx")}
    real = features(reference_files(tmp_path / "real"))
    kept = [i for i, file in enumerate(files["onnx"]) if not file.name.startswith("House")]
    assert [(d["backend"], d["against"]) for d in found["distances"]] == [
        ("onnx", "unedited"),
        ("unedited", "reference"),
        ("onnx", "reference"),
    ]
    for entry in found["distances"]:
        own = features(files[entry["backend"]])
        other = real if entry["against"] == "reference" else features(files["unedited"])
        assert entry["all"] == pytest.approx(frechet(other, own), rel=1e-6) and entry["all_pictures"] == 4
        rest = other if entry["against"] == "reference" else other[kept]
        assert entry["rest"] == pytest.approx(frechet(rest, own[kept]), rel=1e-6) and entry["rest_pictures"] == 2
    assert "from reference: " in run(*options).stdout


def test_more_pictures_than_a_piece_and_mixed_sizes_keep_their_order(tmp_path):
    files = pictures(tmp_path / "a", 40) + pictures(tmp_path / "b", 3, 5, (40, 32))
    files = [files[i] for i in np.random.default_rng(7).permutation(len(files))]
    reference = tmp_path / "real"
    pictures(reference, 4, 9)
    (entry,) = Distances([DemoJudge()], None, reference).between({"onnx": files}, [0, 5, 41])
    own, real = features(files), features(sorted(reference.iterdir()))
    assert entry.all == pytest.approx(frechet(real, own), rel=1e-6)
    assert entry.rest == pytest.approx(frechet(real, own[[0, 5, 41]]), rel=1e-6)


def test_refuses_what_is_no_reference(demo_artifact, tmp_path):
    one, bad = tmp_path / "one", tmp_path / "bad"
    pictures(one, 1)
    pictures(bad, 2)
    (bad / "x.jpg").write_bytes(b"no picture")
    there = ["evaluate", demo_artifact.path, "--backend", "onnx", "-o", tmp_path / "e", "--reference"]
    refused("is no folder", *there, tmp_path / "nowhere")
    refused("at least two", *there, one)
    refused("x.jpg' is no picture that can be read", *there, bad)
    assert not (tmp_path / "e").exists()
    with pytest.raises(SaeuronError, match="give --fid FILE"):
        Distances([], None, bad)
