"""Runs the golden prompts with an Euler scheduler in torch, edited and unedited, for other clients to compare with.

Usage: euler_reference.py ARTIFACT OUTPUT.npz. For golden run i it holds `i/hook` (final latents of the checkpoint, which
the artifact's proof holds to the hook), `i/unedited` and `i/drift`; and once `timesteps`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_reader import BARS, Golden, distance, norm, read_golden
from loops import EULER_STEPS, final_latents, use_euler

import saeuron


def remove_edit(unet: Any, golden: Golden) -> None:
    """Unhook the UNet's edits, and check against a golden case that the original model is what is left."""
    for name in unet.config["ablation"]["hookpoints"]:
        unet.get_submodule(name)._forward_hooks.clear()
    case = max(golden.cases, key=lambda c: distance(c.hook, c.unedited))
    with torch.no_grad():
        found = unet(
            torch.from_numpy(case.sample).to(unet.dtype), case.timestep, torch.from_numpy(case.context).to(unet.dtype), return_dict=False
        )[0]
    share = distance(found.float().numpy(), case.unedited) / distance(case.hook, case.unedited)
    assert share <= BARS[golden.precision], f"the unhooked UNet is {share:.2%} of the edit's effect from the original model's golden output"


def main(artifact: Path, output: Path) -> None:
    """Write the reference."""
    golden = read_golden(artifact)
    pipeline: Any = saeuron.load(artifact)
    use_euler(pipeline)

    def loops(initial: list[np.ndarray]) -> list[np.ndarray]:
        return [final_latents(pipeline, run, EULER_STEPS, start).float().numpy() for run, start in zip(golden.runs, initial, strict=True)]

    initial = [run.initial for run in golden.runs]
    edited = loops(initial)
    remove_edit(pipeline.unet, golden)
    unedited = loops(initial)
    # The model's own sensitivity: the same loop from latents moved by one rounding unit.
    unit, random = torch.finfo(pipeline.unet.dtype).eps, np.random.default_rng(0)
    moved = loops([start * (1 + random.choice(np.array([-unit, unit], np.float32), start.shape)) for start in initial])

    timesteps = pipeline.scheduler.timesteps.numpy()
    assert (timesteps % 1 != 0).any(), "no timestep lies between integers, so an int64 timestep would go unseen"
    found: dict[str, Any] = {"timesteps": timesteps}
    for i, (hook, original, again) in enumerate(zip(edited, unedited, moved, strict=True)):
        found |= {f"{i}/hook": hook, f"{i}/unedited": original, f"{i}/drift": distance(again, original) / norm(original)}
    np.savez(output, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
