"""Proves an artifact again, from its own golden vectors or from a fresh run of the hook.

Without torch, diffusers and transformers it proves what it can (graphs, free runs by `validation.lean`) and says what it can't.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..editor.errors import SaeuronError
from . import engines, manifest, surroundings
from .golden import Golden
from .installed import missing
from .load import load
from .parity import prove
from .runners import NETWORKS, OnnxRunner, Runner, TorchRunner, check_provider, provider_of

GOLDEN = "edit/golden.safetensors"
_TORCH_ONLY = ("checkpoint",)
"""backends that torch runs"""


class _Lazy:
    """Opens a runner when its turn comes, so that two copies of a large model never lie in memory together.

    Args:
        name: of the backend.
        make: opens it.
        skips: check → why it is left out.
    """

    def __init__(self, name: str, make: Callable[[], Runner], skips: dict[str, str]) -> None:
        self.name, self._make, self.skips = name, make, skips
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
    progress: Callable[[str], None] = lambda text: None, provider: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Prove an artifact.

    Args:
        artifact: its folder.
        backends: `checkpoint`, `onnx`, `trt`, `trt-rtx`; default: all that it holds and that can be run here.
        device: torch device of the checkpoint; ONNX Runtime takes its CUDA provider on `cuda` (not tested on a GPU).
        golden: reference to compare with; default: the artifact's own golden file.
        check_files: compare every file with the manifest first.
        progress: told each check's name.
        provider: of ONNX Runtime, one of `runners.PROVIDERS`; default: the device's. An ONNX Runtime that falls back to another is refused.

    Returns:
        see `parity.prove`; `provider` in the part of `onnx`; besides `record`, `surroundings`, and `not_checked`: `[{"check", "reason"}, …]`, with `backend` where it is
        one backend's check. It is empty where torch, diffusers and transformers are
        installed, and a GPU for an artifact's engines.

    Raises:
        SaeuronError: no artifact, a changed file, a backend that it doesn't hold or that can't be run here.
    """
    root = Path(artifact)
    record = manifest.read(root)
    if check_files:
        manifest.check_files(root, record)
    manifest.check_backends(root, record, backends)
    check_provider(provider, backends or record["formats"])
    executor = provider_of(device, provider)
    lacking = missing()
    chosen, not_checked = _runnable(root, tuple(backends), record["formats"], lacking)
    reference = golden or Golden.load(root / GOLDEN)
    lean = {name: _skips(root, reference, lacking or name in engines.BACKENDS) for name in chosen}
    loop = "lean" if lacking else "diffusers"
    makers: dict[str, Callable[[], Runner]] = {
        "checkpoint": lambda: TorchRunner(load(root, device=device, check_files=False)),
        "onnx": lambda: OnnxRunner(root, executor, loop),
        **{name: functools.partial(NETWORKS[name], root, executor) for name in engines.BACKENDS},
    }
    runners = [_Lazy(name, makers[name], lean[name]) for name in chosen]
    not_checked += [{"backend": name, "check": check, "reason": reason} for name in chosen for check, reason in lean[name].items()]
    found: dict[str, Any] = {}
    mismatches: list[str] = []
    if lacking:
        reason = f"needs {', '.join(lacking)}"
        not_checked += [{"check": name, "reason": reason} for name in ("record", "surroundings")]
    else:
        progress("the record against the tensors")
        from .record import check_record

        mismatches = check_record(root, record, reference)
        around = surroundings.compare(
            surroundings.of_folder(root, reference.notes["prompts"], reference.notes["steps"]), reference.surroundings
        )
        found = {"record": {"passed": not mismatches, "failures": mismatches}, "surroundings": around}
        mismatches = mismatches + around["failures"]
    report = prove(reference, runners, progress)  # type: ignore[arg-type]
    not_checked += _outside(report["backends"])
    if "onnx" in report["backends"]:
        report["backends"]["onnx"]["provider"] = executor
    report |= {**found, "not_checked": not_checked}
    report["failures"] = mismatches + report["failures"]
    report["passed"] = not report["failures"]
    return report


def _runnable(root: Path, wanted: tuple[str, ...], held: Sequence[str], lacking: list[str]) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Backends to run, and those that the artifact holds but this installation can't run."""
    out = [name for name in (wanted or held) if lacking and name in _TORCH_ONLY]
    chosen = tuple(name for name in (wanted or held) if name not in out)
    if out and (wanted or not chosen):
        raise SaeuronError(f"backend '{out[0]}' of '{root}' needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
    left = [{"check": name, "reason": f"needs {', '.join(lacking)}"} for name in out]
    for name in [n for n in chosen if n in engines.BACKENDS]:
        try:
            engines.tensorrt_module(name)
            engines.gpu()
        except SaeuronError as error:
            if wanted or len(chosen) == 1:
                raise
            chosen = tuple(n for n in chosen if n != name)
            left.append({"check": name, "reason": str(error).partition(";")[0]})
    return chosen, left


def _outside(backends: dict[str, Any]) -> list[dict[str, str]]:
    """Checks that were made in part or not at all, since an engine wasn't built for the golden vectors' shapes."""
    found = []
    for name, parts in backends.items():
        for check in ("forwards", "components", "runs"):
            left = parts[check].get("outside")
            if left:
                what = ", ".join(left) if isinstance(left, list) else f"{left} {check}"
                found.append({"backend": name, "check": check, "reason": f"{what}: of shapes that the engine wasn't built for"})
    return found


def _skips(root: Path, reference: Golden, lean: Any) -> dict[str, str]:
    """Checks that can't be made without diffusers: free runs, where only it has the scheduler's loop."""
    if not lean or not reference.runs:
        return {}
    from .lean.pipeline import scheduler_of

    try:
        scheduler_of(root)
    except SaeuronError as error:
        return {"runs": f"needs diffusers' loop: {str(error).partition(';')[0]}"}
    return {}
