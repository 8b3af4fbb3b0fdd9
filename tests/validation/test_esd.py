"""The eraser of `benchmarks/esd.py`: its target, which weights it trains, and that its result is a plain pipeline."""

import sys

import torch
from benchmarks import esd
from safetensors.torch import load_file

from saeuron.editor import demo
from saeuron.editor.denoisers.pipelines import load_pipeline


def test_the_target_in_v_is_the_one_in_epsilon():
    """ε = α v + σ x_t: with one x_t on all sides, pushing v away is pushing ε away."""
    made = torch.Generator().manual_seed(0)
    concept, empty, x = torch.randn(3, 2, 4, 8, 8, generator=made, dtype=torch.float64)
    for square in (0.9, 0.3):
        alpha, sigma = square**0.5, (1 - square) ** 0.5
        wanted = esd.target(alpha * concept + sigma * x, alpha * empty + sigma * x, eta=1.5)
        torch.testing.assert_close(alpha * esd.target(concept, empty, eta=1.5) + sigma * x, wanted)


def test_it_trains_the_weights_that_its_method_names_and_no_others(tmp_path, monkeypatch):
    """Both results open as a pipeline, and the file holds the trained weights alone."""
    before = load_pipeline("demo").unet.state_dict()
    for method in ("x", "u"):
        folder, file = tmp_path / method, tmp_path / f"{method}.safetensors"
        given = ["--concept", "Star", "--method", method, "--steps", 1, "--draw-steps", 2, "--batch", 1, "--output", folder, "--unet", file]
        monkeypatch.setattr(sys, "argv", ["esd", *map(str, given)])
        esd.main()
        after = load_pipeline(str(folder)).unet.state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed and all((esd.CROSS in name) == (method == "x") for name in changed)
        held = load_file(file)
        assert changed <= held.keys() and all(torch.equal(value, after[name]) for name, value in held.items())
    assert {p.name for p in folder.iterdir()} >= {p.name for p in demo.resolve("demo").iterdir() if p.is_dir()}
