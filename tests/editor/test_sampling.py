"""Pictures are the pipeline's own; values that are not finite are no picture."""

import numpy as np
import pytest
import torch

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import denoise, generate, initial_latents, step_generators


def test_pictures_are_those_of_the_pipeline():
    pipeline, prompts, seeds = load_pipeline("demo"), ["An image of Car.", "An image of House in Neon style."], [3, 8]
    pipeline.set_progress_bar_config(disable=True)
    latents = initial_latents(pipeline, seeds)
    generator = step_generators(seeds, latents.shape[1:])
    theirs = pipeline(prompt=prompts, latents=latents.clone(), generator=generator, num_inference_steps=3, guidance_scale=3.0).images
    ours = denoise(pipeline, prompts, latents, seeds, 3, 3.0, "pil")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.mode == other.mode and np.array_equal(np.asarray(mine), np.asarray(other))


def test_what_is_not_finite_is_refused():
    pipeline = load_pipeline("demo")
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(SaeuronError, match="not finite"):
        generate(pipeline, ["An image of Car."], [3], 1, 3.0)
