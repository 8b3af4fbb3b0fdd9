"""Weights of a denoiser from a file of their own, as erasers publish them, put over those of a base model. Needs no torch to be imported."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import SaeuronError
from ..common.files import file_sha256, open_safetensors, reading
from ..common.typed import Record, Whole
from .components import ADAPTER, some

if TYPE_CHECKING:
    import torch


class Overlay(Record, kw_only=True):
    """What a file of weights changed in a base model."""

    file: str
    """its name"""
    sha256: str
    """the file's"""
    tensors: Whole
    """in the file"""
    changed: Whole
    """of these, the ones whose values aren't the base's"""
    before_sha256: str
    """of the changed weights (names, shapes, float32 values) in the base"""
    after_sha256: str
    """of the same, with the file over it"""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a safetensors file, or of a torch file that holds tensors alone (no code is run).

    Raises:
        SaeuronError: neither, or a torch file that holds something else than a table of tensors.
    """
    import torch

    if not path.is_file():
        raise SaeuronError(f"--unet '{path}' is no file; give the file of weights (a whole pipeline's folder is for --pipeline)")
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    with reading(path, "tensors alone"):
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping) or not content:
        raise SaeuronError(f"--unet '{path}' holds no table of weights")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise SaeuronError(f"--unet '{path}': '{str(name)[:60]}' is no tensor; give the table of weights (the state dict) alone")
    return dict(content)


def put_over(network: torch.nn.Module, path: Path, base: str) -> Overlay:
    """Put a file's weights into a network; a file of some of its weights leaves the others as they are.

    Args:
        network: of the base model, changed in place.
        path: see `read_weights`.
        base: what the network is of, for errors.

    Raises:
        SaeuronError: a weight that has no place, another shape, or no finite float values; or a file that changes nothing.
    """
    import torch

    from .sampling import to_numpy

    held, own = read_weights(path), network.state_dict()
    if surplus := [name for name in held if name not in own]:
        if adapter := [name for name in surplus if ADAPTER.search(name)]:
            raise SaeuronError(f"--unet '{path}' holds an adapter (LoRA), {some(adapter)}; fuse it into the pipeline, and give that folder")
        raise SaeuronError(
            f"--unet '{path}' holds {some(surplus)}, for which the UNet of '{base}' has no place; names are those of diffusers"
        )
    for name, value in held.items():
        if value.shape != own[name].shape:
            raise SaeuronError(
                f"--unet '{path}': {name} has shape {list(value.shape)}, in '{base}' it is {list(own[name].shape)}; is it of another base model?"
            )
    before, after, changed = hashlib.sha256(), hashlib.sha256(), 0
    for name, value in sorted(held.items()):
        if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            raise SaeuronError(
                f"--unet '{path}': '{name}' is {str(value.dtype).removeprefix('torch.')}; only plain float weights can be put in"
            )
        new = value.to(own[name].dtype)
        if not new.isfinite().all():
            raise SaeuronError(f"--unet '{path}': the weight {name} holds values that are not finite; take the file again from its source")
        if torch.equal(own[name].cpu(), new):
            continue
        changed += 1
        for digest, tensor in ((before, own[name]), (after, new)):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(to_numpy(tensor).tobytes())
    if not changed:
        raise SaeuronError(f"--unet '{path}' changes nothing: all its {len(held)} weights are those of '{base}'; is it the edited file?")
    network.load_state_dict(held, strict=False)
    return Overlay(
        file=path.name, sha256=file_sha256(path), tensors=len(held), changed=changed,
        before_sha256=before.hexdigest(), after_sha256=after.hexdigest(),
    )  # fmt: skip
