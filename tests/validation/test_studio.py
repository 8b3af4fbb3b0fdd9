"""What `saeuron try` opens: checkpoint and graphs draw and decide alike, and what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from tests.conftest import guard

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.artifact import manifest
from saeuron.validation.backends.choose import Way
from saeuron.validation.ui import studio as opening
from saeuron.validation.ui.firing import ALL
from saeuron.validation.ui.settings import TrySettings, Wish
from saeuron.validation.ui.studio import DiffusersLoop, LeanLoop, choose, open_studio

WISH = Wish("An image of House in Neon style.", "Car", 3, 5, 3.0)


def opened(root, **settings):
    record = manifest.read(root)
    wanted = TrySettings(**settings)
    return open_studio(root, record, wanted, choose(root, record, wanted))


@pytest.mark.slow
def test_backends_draw_and_decide_alike(demo_artifact):
    studios = [opened(demo_artifact.path, **s) for s in ({}, {"scheduler": "ddim"}, {"backend": "onnx"})]
    assert [type(s.edited_loop) for s in studios] == [DiffusersLoop, LeanLoop, LeanLoop]
    assert [s.runs_on for s in studios] == ["the checkpoint, torch on cpu"] * 2 + ["ONNX Runtime, CPUExecutionProvider"]
    drawn = [s.edited(WISH) for s in studios]
    before = [s.unedited(WISH) for s in studios]
    first = drawn[0]
    assert first.firing is not None and list(first.firing.maps) == ["House", "Neon", ALL] and len(first.firing.timesteps) == WISH.steps
    assert all(first.firing.maps[name].any() for name in first.firing.maps)
    assert np.abs(first.picture.astype(int) - before[0]).max() > 50
    for other, unedited in zip(drawn[1:], before[1:], strict=True):
        assert np.abs(other.picture.astype(int) - first.picture).max() <= 1 and np.abs(unedited.astype(int) - before[0]).max() <= 1
        assert other.firing.timesteps == first.firing.timesteps and other.firing.features == first.firing.features
        for name, counts in first.firing.maps.items():
            # Rounding alone can turn a decision here and there.
            assert (other.firing.maps[name] != counts).mean() <= 0.01, name
    assert all(s.no_original == s.no_maps == "" for s in studios)


def test_what_has_no_effect_is_said(demo_artifact):
    for studio in (opened(demo_artifact.path), opened(demo_artifact.path, backend="onnx")):
        assert studio.warnings(WISH) == []
        (lost, nothing) = studio.warnings(Wish("House " * 40, "Car", 3, 5, 1.0))
        assert (
            lost == "The last 18 tokens of the prompt are beyond what the text encoder reads."
            and "does nothing with this model at guidance 1" in nothing
        )


def test_an_original_that_is_not_here_is_said_and_not_fetched(demo_artifact, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    from saeuron.editor import demo

    held, asked = {"somebody/fetched": demo.resolve("demo")}, []

    def snapshot_download(name, **options):
        asked.append((name, options["local_files_only"]))
        if name in held:
            return held[name]
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    record, root = manifest.read(demo_artifact.path), demo_artifact.path
    wanted = TrySettings(backend="onnx")

    def studio(source):
        return open_studio(root, replace(record, model=replace(record.model, source=source)), wanted, choose(root, record, wanted))

    for source in ("somebody/something", "a-folder-of-somebody"):
        seen = studio(source)
        assert seen.unedited_loop is None and seen.unedited(WISH) is None and source in seen.no_original
        assert (
            seen.no_original.startswith("Not drawn: the original model on record can't be opened here")
            and "--model DIR" in seen.no_original
        )
    assert studio("somebody/fetched").no_original == "" and asked == [("somebody/something", True), ("somebody/fetched", True)]
    monkeypatch.setattr(opening, "missing", lambda names=("torch",): ["torch"] if names == ("torch",) else [])
    assert "needs torch" in opened(root, backend="onnx").no_original


def test_an_original_that_is_asked_for_must_be_the_one(demo_artifact, tiny):
    with pytest.raises(SaeuronError, match="not the model that this artifact was made from"):
        opened(demo_artifact.path, backend="onnx", model=str(tiny["model"]))
    with pytest.raises(SaeuronError, match="no folder 'nowhere' here"):
        opened(demo_artifact.path, backend="onnx", model="nowhere")


def test_a_safety_checker_is_not_asked(demo_artifact, tmp_path):
    """One that finds something in every picture would blacken it."""
    from diffusers import StableDiffusionPipeline

    from saeuron.editor import demo

    guard(demo.resolve("demo"), tmp_path / "guarded")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "guarded")
    pipeline.safety_checker.forward = lambda images, **_: (np.zeros_like(images), [True] * len(images))
    plain = StableDiffusionPipeline.from_pretrained(demo.resolve("demo"))
    pictures = [DiffusersLoop(p, (None, None))(WISH, lambda *of: None) for p in (pipeline, plain)]
    assert np.array_equal(*pictures) and pictures[0].std() > 10


def test_engines_show_no_maps(monkeypatch):
    assert "TensorRT engine hides" in opening._no_maps(Way("trt-rtx", "rtx40"), ["a"])
    assert opening._no_maps(Way("checkpoint"), ["a"]) == opening._no_maps(Way("onnx"), ["a", "a:text"]) == ""
    monkeypatch.setattr(opening, "missing", lambda names=(): list(names))
    assert "onnx is not installed" in opening._no_maps(Way("onnx"), ["a"])


def test_an_edit_of_text_or_weights_alone_shows_no_maps():
    for hookpoints in (["a:text", "b:text"], []):
        assert "neither has a place in a picture" in opening._no_maps(Way("onnx"), hookpoints)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"seed": 2**32}, "seed is 4294967296; it must be 0 to 4294967295"),
        ({"steps": 0}, "steps is 0; it must be 1 to 1000"),
        ({"guidance": float("nan")}, "guidance is nan; it must be a finite number"),
    ],
)
def test_what_can_not_be_meant(changes, said):
    with pytest.raises(SaeuronError, match=said):
        Wish(**({"prompt": "A house"} | changes))
