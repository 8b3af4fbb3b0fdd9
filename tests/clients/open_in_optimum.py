"""Opens an artifact in optimum, unchanged, and runs its golden loops and an Euler loop.

Usage: open_in_optimum.py ARTIFACT [EULER.npz], the latter written by `euler_reference.py` for an artifact with a UNet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import optimum.onnxruntime
from golden_reader import Report, read_golden
from loops import EULER_STEPS, compare_golden_loops, final_latents, use_euler


def main(artifact: Path, euler: Path | None) -> int:
    """Exit code: 0 if every loop matches."""
    golden = read_golden(artifact)
    report = Report("optimum", golden.precision)
    kind = "ORT" + json.loads((artifact / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(optimum.onnxruntime, kind).from_pretrained(artifact)
    compare_golden_loops(report, pipeline, golden)
    if euler is None:
        return report.exit_code()

    use_euler(pipeline)
    reference = np.load(euler)
    for i, run in enumerate(golden.runs):
        latents = final_latents(pipeline, run, EULER_STEPS).float().numpy()
        where = f"Euler, guidance {run.guidance:g}, {run.hook_pictures.shape[1]}x{run.hook_pictures.shape[2]}"
        hook, neutral, unedited, drift = (reference[f"{i}/{key}"] for key in ("hook", "neutral", "unedited", "drift"))
        report.compare(f"latents ({where})", latents, hook, neutral, unedited, float(drift))
    timesteps = pipeline.scheduler.timesteps.numpy()
    report.line(
        np.array_equal(timesteps, reference["timesteps"]),
        f"Euler ran at the reference's timesteps: {' '.join(f'{t:.1f}' for t in timesteps)}",
    )
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None))
