"""Remove concepts from diffusion models with features of a sparse autoencoder, and ship the result proven.

```python
import saeuron
result = saeuron.export_artifact(saeuron.Settings(concepts=["Neon"], output="without-neon"))
pipeline = saeuron.load("without-neon")
```
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editor.common.errors import SaeuronError as SaeuronError
    from .editor.edit.steering import steer as steer
    from .export.plan.settings import Settings as Settings
    from .export.ship.artifact import Result as Result
    from .export.ship.report import ReportSettings as ReportSettings
    from .export.ship.stages import export_artifact as export_artifact
    from .export.verbs import attack as attack
    from .export.verbs import compare as compare
    from .export.verbs import evaluate as evaluate
    from .export.verbs import report as report
    from .export.verbs import tune as tune
    from .validation.attack.settings import AttackSettings as AttackSettings
    from .validation.backends.load import load as load
    from .validation.compare.settings import CompareSettings as CompareSettings
    from .validation.evidence.evaluation_settings import EvaluationSettings as EvaluationSettings
    from .validation.proof.validate import validate as validate
    from .validation.trust.verify import verify as verify
    from .validation.tuning.settings import TuneSettings as TuneSettings

# Official builds of ONNX Runtime report to their maker from 1.29 on, unless this is set before anything imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Names are looked up at first use: importing `saeuron` must not need torch.
_HOME = {
    "AttackSettings": ".validation.attack.settings", "CompareSettings": ".validation.compare.settings", "compare": ".export.verbs",
    "EvaluationSettings": ".validation.evidence.evaluation_settings",
    "ReportSettings": ".export.ship.report", "Result": ".export.ship.artifact", "SaeuronError": ".editor.common.errors",
    "Settings": ".export.plan.settings", "TuneSettings": ".validation.tuning.settings", "attack": ".export.verbs", "evaluate": ".export.verbs",
    "export_artifact": ".export.ship.stages", "load": ".validation.backends.load", "report": ".export.verbs", "steer": ".editor.edit.steering",
    "tune": ".export.verbs", "validate": ".validation.proof.validate", "verify": ".validation.trust.verify",
}  # fmt: skip
__all__ = [
    "AttackSettings", "CompareSettings", "EvaluationSettings", "ReportSettings", "Result", "SaeuronError", "Settings", "TuneSettings", "attack", "compare",
    "evaluate", "export_artifact", "load", "report", "steer", "tune", "validate", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saeuron' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
