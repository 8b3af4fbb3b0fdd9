"""Checks at the start that the packages which a job needs at its end are installed. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from ...editor.common.errors import SaeuronError
from ...validation.artifact.installed import missing


def check_packages(formats: Sequence[str], validate: bool) -> None:
    """Raise unless the packages are there that graphs are written by, and proven by; they are needed only at the very end."""
    if "onnx" in formats:
        needed = ("onnx", "onnxscript", *(("onnxruntime",) if validate else ()))
        for name in missing(needed):
            extra = "cpu" if name == "onnxruntime" else "export"
            raise SaeuronError(
                f"'{name}' is not installed, which ONNX graphs {'are proven by' if extra == 'cpu' else 'need'}; pip install 'saeuron-export[{extra}]', or leave onnx out of --format"
            )
