"""Remove concepts from diffusion models with features of a sparse autoencoder, and ship the result proven.

```python
import saeuron
result = saeuron.export_artifact(saeuron.Settings(concepts=["Neon"], output="without-neon"))
pipeline = saeuron.load("without-neon")
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editor.errors import SaeuronError as SaeuronError
    from .editor.steering import steer as steer
    from .export.artifact import Result as Result
    from .export.artifact import export_artifact as export_artifact
    from .export.settings import Settings as Settings
    from .validation.load import load as load
    from .validation.validate import validate as validate
    from .validation.verify import verify as verify

# Names are looked up at first use: importing `saeuron` must not need torch.
_HOME = {
    "SaeuronError": ".editor.errors", "Settings": ".export.settings", "Result": ".export.artifact", "export_artifact": ".export.artifact",
    "load": ".validation.load", "steer": ".editor.steering", "validate": ".validation.validate", "verify": ".validation.verify",
}  # fmt: skip
__all__ = ["Result", "SaeuronError", "Settings", "export_artifact", "load", "steer", "validate", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saeuron' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
