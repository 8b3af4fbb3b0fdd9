"""Opens an artifact in plain diffusers, without saeuron, and runs its golden loops. Usage: open_in_diffusers.py ARTIFACT."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import torch
import transformers
from golden_reader import Report, read_golden
from loops import compare_golden_loops

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(artifact: Path) -> int:
    """Exit code: 0 if every loop matches."""
    golden = read_golden(artifact)
    report = Report(f"diffusers {diffusers.__version__} (transformers {transformers.__version__})", golden.precision)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(artifact, trust_remote_code=True, torch_dtype=DTYPES[golden.precision])
    compare_golden_loops(report, pipeline, golden)
    report.line("saeuron" not in sys.modules, "the network's code came from the artifact; saeuron was not imported")
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
