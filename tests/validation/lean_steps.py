"""A lean scheduler's steps beside those of diffusers, on the same random predictions."""

import torch


def both(ours, theirs, seed):
    """What each makes of the same sample and prediction, step by step as (numpy, torch); the next begins with what diffusers gave."""
    theirs.set_begin_index(0)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 4, 6, 8, generator=generator)
    for i, t in enumerate(theirs.timesteps):
        output = torch.randn(sample.shape, generator=generator)
        following = theirs.step(output, t, sample).prev_sample
        yield ours.step(output.numpy(), i, ours.scale_model_input(sample.numpy(), i)), following
        sample = following
