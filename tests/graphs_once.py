"""Unedited networks are exported once a session: half of each export is their graphs, and those follow from the network alone."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from saeuron.export.formats import onnx
from saeuron.export.formats.onnx import Component

Write = Callable[[Component, Path], dict[str, dict[str, str]]]


def key_of(component: Component) -> str:
    """A digest of all that a graph follows from: modules with their settings, weights, inputs, axes."""
    digest = hashlib.sha256()
    told: list[object] = [component.folder, component.dynamic, component.outputs]
    told += [(name, value.dtype, value.shape) for name, value in component.inputs.items()]
    for name, module in component.module.named_modules():
        plain = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, bool | int | float | str | tuple | torch.dtype)}
        told.append((name, type(module).__qualname__, repr(module), str(getattr(module, "config", "")), plain))
    digest.update(repr(told).encode())
    for name, value in (*component.module.named_parameters(), *component.module.named_buffers()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def once(write: Write, kept: Path) -> Write:
    """`write`, which takes the graph of an unedited network from `kept` if any worker wrote it."""
    exporter = torch.onnx.export

    def written(component: Component, root: Path) -> dict[str, dict[str, str]]:
        # A denoiser is edited; weights may stay in their files; a test that breaks the exporter wants it asked.
        away = any(value.is_meta for value in component.module.parameters())
        if isinstance(component.module, onnx._Network) or away or torch.onnx.export is not exporter:
            return write(component, root)
        place = kept / key_of(component)
        if not place.exists():
            kept.mkdir(exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=kept))
            assert write(component, new) == {}
            try:
                os.rename(new, place)
            except OSError:  # another worker's is there by now
                shutil.rmtree(new)
        shutil.copytree(place / component.folder, root / component.folder, dirs_exist_ok=True)
        return {}

    return written
