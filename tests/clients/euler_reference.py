"""Runs the golden prompts with an Euler scheduler in torch for other clients to compare with.

Usage: euler_reference.py ARTIFACT OUTPUT.npz. For golden run i it holds final latents `i/hook` (the checkpoint's, which the
artifact's proof holds to the hook), `i/neutral` and `i/unedited`, and `i/drift`; and once `timesteps`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from golden_reader import BARS, Golden, distance, norm, read_golden
from loops import EULER_STEPS, final_latents, use_euler

import saeuron


def neutralise(unet: Any) -> None:
    """Set every gain to 1."""
    for ablation in unet.ablations.values():
        ablation.gains.fill_(1)


def unedited(unet: Any, golden: Golden) -> Any:
    """The original model: diffusers' own class with the artifact's weights without the edit's, checked against a golden case.

    The artifact's class refuses to run without its edit.
    """
    config = {name: value for name, value in unet.config.items() if name not in ("ablation", "_class_name")}
    weights = {name: value for name, value in unet.state_dict().items() if not name.startswith(("ablations.", "conv_in."))}
    plain = UNet2DConditionModel.from_config({**config, "mid_block_type": unet.config["ablation"]["stock"]}).to(unet.dtype).eval()
    plain.load_state_dict({name.removeprefix("edited_"): value for name, value in weights.items()})
    unet = plain
    case = max(golden.cases, key=lambda c: distance(c.hook, c.unedited))
    sample, context = (torch.from_numpy(v).to(unet.dtype) for v in (case.sample, case.context))
    with torch.no_grad():
        added = {name: torch.from_numpy(value).to(unet.dtype) for name, value in case.conditions.items()}
        found = unet(sample, case.timestep, context, added_cond_kwargs=added or None, return_dict=False)[0].float().numpy()
    share = distance(found, case.unedited) / distance(case.hook, case.unedited)
    assert share <= BARS[golden.precision], (
        f"the UNet without its edit is {share:.2%} of the edit's effect from the original model's golden output"
    )
    return plain


def main(artifact: Path, output: Path) -> None:
    """Write the reference."""
    golden = read_golden(artifact)
    pipeline: Any = saeuron.load(artifact)
    use_euler(pipeline)
    unit, random = torch.finfo(pipeline.unet.dtype).eps, np.random.default_rng(0)
    steps = [random.choice(np.array([-unit, unit], np.float32), run.initial.shape) for run in golden.runs]

    def loops(moved: int = 0) -> list[np.ndarray]:
        """Final latents of every run, from initial ones moved by so many rounding units."""
        return [
            final_latents(pipeline, r, EULER_STEPS, r.initial * (1 + moved * s)).float().numpy()
            for r, s in zip(golden.runs, steps, strict=True)
        ]

    edited, *edited_moved = loops(), loops(1), loops(-1)
    neutralise(pipeline.unet)
    neutral = loops()
    pipeline.unet = unedited(pipeline.unet, golden)
    original, *original_moved = loops(), loops(1)

    timesteps = pipeline.scheduler.timesteps.numpy()
    assert (timesteps % 1 != 0).any(), "no timestep lies between integers, so an int64 timestep would go unseen"
    found: dict[str, Any] = {"timesteps": timesteps}
    for i, (hook, plain) in enumerate(zip(edited, original, strict=True)):
        drifts = [distance(moved[i], hook) / norm(hook) for moved in edited_moved] + [
            distance(moved[i], plain) / norm(plain) for moved in original_moved
        ]
        found |= {f"{i}/hook": hook, f"{i}/neutral": neutral[i], f"{i}/unedited": plain, f"{i}/drift": max(drifts)}
    np.savez(output, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
