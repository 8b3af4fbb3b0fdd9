"""Proves an artifact again, from its own golden vectors or from a fresh run of the hook."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import manifest, surroundings
from .golden import Golden
from .load import load
from .parity import prove
from .record import check_record
from .runners import OnnxRunner, Runner, TorchRunner

GOLDEN = "edit/golden.safetensors"


class _Lazy:
    """Opens a runner when its turn comes, so that two copies of a large model never lie in memory together."""

    def __init__(self, name: str, make: Callable[[], Runner]) -> None:
        self.name, self._make = name, make
        self._runner: Runner | None = None

    def __getattr__(self, attribute: str) -> Any:
        if self._runner is None:
            self._runner = self._make()
        return getattr(self._runner, attribute)

    def close(self) -> None:
        self._runner = None
        gc.collect()


def validate(
    artifact: str | Path, backends: Sequence[str] = (), device: str = "cpu", golden: Golden | None = None, check_files: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Prove an artifact.

    Args:
        artifact: its folder.
        backends: `checkpoint`, `onnx`; default: all that it holds.
        device: torch device of the checkpoint; ONNX Runtime takes its CUDA provider on `cuda` (not tested on a GPU).
        golden: reference to compare with; default: the artifact's own golden file.
        check_files: compare every file with the manifest first.
        progress: told each check's name.

    Returns:
        see `parity.prove`.

    Raises:
        SaeuronError: no artifact, a changed file, a backend that it doesn't hold.
    """
    root = Path(artifact)
    record = manifest.read(root)
    if check_files:
        manifest.check_files(root, record)
    manifest.check_backends(root, record, backends)
    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    makers: dict[str, Callable[[], Runner]] = {
        "checkpoint": lambda: TorchRunner(load(root, device=device, check_files=False)),
        "onnx": lambda: OnnxRunner(root, provider),
    }
    runners = [_Lazy(name, makers[name]) for name in (backends or record["formats"])]
    reference = golden or Golden.load(root / GOLDEN)
    progress("the record against the tensors")
    mismatches = check_record(root, record, reference)
    around = surroundings.compare(
        surroundings.of_folder(root, reference.notes["prompts"], reference.notes["steps"]), reference.surroundings
    )
    report = prove(reference, runners, progress)  # type: ignore[arg-type]
    report["record"] = {"passed": not mismatches, "failures": mismatches}
    report["surroundings"] = around
    report["failures"] = mismatches + around["failures"] + report["failures"]
    report["passed"] = not report["failures"]
    return report
