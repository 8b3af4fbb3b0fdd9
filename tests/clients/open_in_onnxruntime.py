"""Runs an artifact's UNet on its golden cases with numpy, onnxruntime and safetensors alone. Usage: open_in_onnxruntime.py ARTIFACT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from golden_reader import Report, distance, read_golden

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main(artifact: Path) -> int:
    """Exit code: 0 if every case matches."""
    golden = read_golden(artifact)
    report = Report("onnxruntime", golden.precision)
    session = onnxruntime.InferenceSession(artifact / "unet" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {i.name: TYPES[i.type] for i in session.get_inputs()}
    floor = min((distance(c.hook, c.neutral) for c in golden.cases if c.fired), default=0.0)
    for case in golden.cases:
        (found,) = session.run(["out_sample"], {name: value.astype(types[name]) for name, value in case.inputs.items()})
        what = f"UNet ({case.kind}, t={case.timestep:g}, {'x'.join(map(str, case.sample.shape))})"
        report.compare(what, found, case.hook, case.neutral if case.fired else case.hook, case.unedited, floor=floor)
    strangers = [name for name in ("saeuron", "torch", "diffusers", "transformers") if name in sys.modules]
    report.line(not strangers, f"needed nothing else (imported besides: {strangers})")
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
