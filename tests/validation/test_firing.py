"""Heat maps of `saeuron try`: what they count is what the hook decides, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.conftest import HOOKPOINT, edit_of, make_activations, make_sae

from saeuron.editor.denoisers.families import rebuilt
from saeuron.editor.denoisers.sampling import denoise, initial_latents
from saeuron.editor.denoisers.unet import UNet
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit_header import EditHeader
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.provenance import Provenance
from saeuron.validation.backends.decisions import Decided, Decisions
from saeuron.validation.backends.lean.pipeline import LeanPipeline
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.trust.tables import EditFile, read_edit
from saeuron.validation.ui.firing import ALL, firing, row_of
from saeuron.validation.ui.settings import Wish
from saeuron.validation.ui.studio import DiffusersLoop, LeanLoop

SIZE = 64, 32
"""pixels: the demo's and other square maps would hide rows and columns that were swapped"""


def naive(edit, decisions, timesteps, name, sides):
    """Counted one by one: picture's token, feature, concept."""
    part = edit.hookpoints[HOOKPOINT]
    maps = np.zeros((len(timesteps), *sides), int)
    for t, timestep in enumerate(timesteps):
        row = int(part.rows(torch.tensor([timestep]))[0])
        fires = decisions[t].fires[-1]
        for token, each in enumerate(fires.tolist()):
            for feature, fired in zip(part.features.tolist(), each, strict=True):
                chosen = [feature in by[row] for concept, by in part.chosen.items() if name in (ALL, concept)]
                maps[t, token // sides[1], token % sides[1]] += fired and any(chosen)
    return maps


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_maps_are_what_the_hook_decides(tiny, tmp_path, guidance):
    saes, wish = {HOOKPOINT: make_sae()}, Wish("A picture of House.", "Car", 5, 4, guidance)
    edit = edit_of(make_activations(), ("A", "count:40", -3.0), ("B", "percentile:80", -2.0))
    edit.save(tmp_path / "edit.safetensors")
    original = StableDiffusionPipeline.from_pretrained(tiny["model"])
    with torch.no_grad(), AblationHook(original.unet, edit, saes, record=True) as hook:
        latents = initial_latents(original, [wish.seed], *SIZE)
        more = {"negative_prompt": [wish.negative]} if wish.guided else {}
        denoise(original, [wish.prompt], latents, [wish.seed], wish.steps, wish.guidance, **more)
        decisions = hook.decisions[HOOKPOINT]
    pipeline = rebuilt(original, unet=bake(original.unet, edit, saes))
    collected = Decisions(UNet(), 1, wish.guided)
    done: list[tuple[int, int]] = []
    picture = DiffusersLoop(pipeline, SIZE)(wish, lambda *of: done.append(of), collected)
    found = firing(read_edit(tmp_path / "edit.safetensors"), collected.forwards, *picture.shape[:2])
    assert picture.shape == (*SIZE, 3) and done == [(i, 4) for i in (1, 2, 3, 4)] and len(found.timesteps) == 4
    sides = found.maps[ALL].shape[1:]
    assert sides[0] == 2 * sides[1]
    part = edit.hookpoints[HOOKPOINT]
    for name in ("A", "B", ALL):
        expected = naive(edit, decisions, found.timesteps, name, sides)
        assert expected.any() and np.array_equal(found.maps[name], expected), name
        assert found.peak(name) == expected.sum((1, 2)).argmax()
        rows = [int(part.rows(torch.tensor([t]))[0]) for t in found.timesteps]
        masks = part.chosen_mask(list(part.chosen) if name == ALL else [name])
        assert found.features[name] == [int(masks[row].sum()) for row in rows]
    # A feature of both concepts counts once among all.
    assert (found.maps[ALL] <= found.maps["A"] + found.maps["B"]).all()
    # Nothing is watched any more, and the loop without diffusers decides the same.
    assert not any(m._forward_hooks for key, module in pipeline.unet.ablations.items() for m in module.modules())
    runner = TorchRunner(pipeline)
    again = Decisions(UNet(), 1, wish.guided)
    lean = LeanLoop(tiny["model"], runner, None, SIZE)(wish, lambda *of: None, again)
    assert np.abs(lean.astype(int) - picture).max() <= 1
    other = firing(read_edit(tmp_path / "edit.safetensors"), again.forwards, *picture.shape[:2])
    assert other.timesteps == found.timesteps and all(np.array_equal(other.maps[n], found.maps[n]) for n in found.maps)


def test_without_an_edit_nothing_is_collected(tiny):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny["model"])
    decisions = Decisions(UNet(), 1, True)
    loop, wish = LeanLoop(tiny["model"], TorchRunner(pipeline), None, SIZE), Wish("A picture of House.", "", 5, 2, 4.0)
    picture = loop(wish, lambda *of: None, decisions)
    plain = LeanPipeline(tiny["model"], TorchRunner(pipeline))([wish.prompt], [5], 2, 4.0, None, *SIZE)[0]
    assert decisions.forwards == [] and np.array_equal(picture, plain)


def made(points, chosen, timesteps=(900, 500, 100)):
    """An edit without its thresholds and gains: hookpoint → features, and hookpoint → concept → features at each timestep."""
    tensors = {}
    for name, features in points.items():
        tensors |= {f"{name}/features": np.array(features, np.int64), f"{name}/timesteps": np.array(timesteps, np.int64)}
    return EditFile(EditHeader("keep", dict.fromkeys(points, 99), chosen, Provenance()), tensors)


def test_maps_of_several_hookpoints_are_added_on_the_finest_grid():
    edit = made({"a": [1, 2], "b": [7]}, {"a": {"X": [[1], [2], []]}, "b": {"Y": [[7], [7], [7]], "X": [[], [], [7]]}})
    fine = np.zeros((2, 8, 2), bool)
    fine[1, 5] = True
    coarse = np.array([[[False], [False]], [[True], [False]]])
    found = firing(edit, [Decided(950.0, {"a": fine, "b": coarse}), Decided(120.0, {"a": fine, "b": coarse})], 64, 32, picture=1)
    # [4, 2] tokens beside [2, 1]: the coarse token's upper half of the picture.
    upper, one = np.array([[1, 1], [1, 1], [0, 0], [0, 0]]), np.array([[0, 0], [0, 0], [0, 1], [0, 0]])
    assert np.array_equal(found.maps["X"], [one, upper]) and np.array_equal(found.maps["Y"], [upper, upper])
    assert np.array_equal(found.maps[ALL], [one + upper, upper])
    assert found.features == {"X": [1, 1], "Y": [1, 1], ALL: [2, 1]} and found.timesteps == [950.0, 120.0]


def test_tokens_of_the_text_have_no_place():
    edit = made({"a": [1, 2], "a:text": [1]}, {"a": {"X": [[1], [2], []]}, "a:text": {"X": [[1], [1], [1]]}})
    picture, text = np.ones((1, 4, 2), bool), np.ones((1, 77, 1), bool)
    found = firing(edit, [Decided(950.0, {"a": picture, "a:text": text})], 32, 32)
    assert np.array_equal(found.maps[ALL], np.ones((1, 2, 2))) and found.features[ALL] == [1]


def test_the_row_is_the_modules():
    edit = edit_of(make_activations(steps=7), ("A", "count:5", -1.0))
    part = edit.hookpoints[HOOKPOINT]
    stored = part.timesteps.numpy()
    middles = [(a + b) / 2 for a, b in zip(stored[:-1], stored[1:], strict=True)]
    for timestep in (*middles, *stored.tolist(), 0.0, 1000.0, 33.3, 541.25):
        assert row_of(stored, float(timestep)) == int(part.rows(torch.tensor([float(timestep)]))[0]), timestep
