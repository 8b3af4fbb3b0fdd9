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
    from .export.ship.stages import export_artifact as export_artifact
    from .validation.backends.load import load as load
    from .validation.proof.validate import validate as validate
    from .validation.trust.verify import verify as verify

# Official builds of ONNX Runtime report to their maker from 1.29 on, unless this is set before anything imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Names are looked up at first use: importing `saeuron` must not need torch.
_HOME = {
    "SaeuronError": ".editor.common.errors", "Settings": ".export.plan.settings", "Result": ".export.ship.artifact", "export_artifact": ".export.ship.stages",
    "load": ".validation.backends.load", "steer": ".editor.edit.steering", "validate": ".validation.proof.validate", "verify": ".validation.trust.verify",
}  # fmt: skip
__all__ = ["Result", "SaeuronError", "Settings", "export_artifact", "load", "steer", "validate", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saeuron' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
