"""Runs an artifact's UNet by polygraphy's command line on its golden inputs. Usage: open_in_polygraphy.py ARTIFACT."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from golden_reader import Case, Report, distance, read_golden
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
POLYGRAPHY = [str(Path(sys.executable).with_name("polygraphy"))]
LARGEST = 16
"""cases in one call: its JSON files hold every tensor"""


def feeds(case: Case, types: dict[str, type]) -> dict[str, np.ndarray]:
    """The graph's inputs by name."""
    return {name: value.astype(types[name]) for name, value in case.inputs.items()}


def main(artifact: Path) -> int:
    """Exit code: 0 if the graph is read and every case matches."""
    golden = read_golden(artifact)
    graph = artifact / "unet" / "model.onnx"
    report = Report("polygraphy", golden.precision)
    told = subprocess.run([*POLYGRAPHY, "inspect", "model", str(graph)], capture_output=True, text=True, check=False)
    report.line(told.returncode == 0 and "out_sample" in told.stdout, f"inspect model: exit code {told.returncode}")

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    types = {i.name: TYPES[i.type] for i in session.get_inputs()}
    floor = min((distance(c.hook, c.neutral) for c in golden.cases if c.fired), default=0.0)
    cases = golden.cases[:LARGEST]
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.json", Path(folder) / "outputs.json"
        save_json([feeds(case, types) for case in cases], str(inputs))
        command = [*POLYGRAPHY, "run", str(graph), "--onnxrt", "--load-inputs", str(inputs), "--save-outputs", str(outputs)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        report.line(
            ran.returncode == 0, f"run --onnxrt: exit code {ran.returncode}{'' if ran.returncode == 0 else ': ' + ran.stdout[-500:]}"
        )
        if ran.returncode:
            return report.exit_code()
        ((_, results),) = RunResults.load(str(outputs)).items()
        report.line(len(results) == len(cases), f"{len(results)} of {len(cases)} cases came back")
        for case, found in zip(cases, results, strict=False):
            what = f"UNet ({case.kind}, t={case.timestep:g}, {'x'.join(map(str, case.sample.shape))})"
            report.compare(what, found["out_sample"], case.hook, case.neutral if case.fired else case.hook, case.unedited, floor=floor)
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
