"""Opens an artifact's pipeline in torch, without executing the code file that lies in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.names import dtype_of
from ...editor.common.quiet import quiet_loading
from ...editor.denoisers.families import family_of, rebuilt
from ..artifact import contents, manifest


def load(artifact: str | Path, dtype: Any = None, device: str = "cpu", check_files: bool = True) -> Any:
    """The edited pipeline of an artifact.

    Args:
        artifact: the artifact's folder.
        dtype: torch dtype; default: the artifact's own precision.
        device: torch device.
        check_files: compare every file with the manifest first.

    Returns:
        a pipeline of the original's class, with the edited UNet.

    Raises:
        SaeuronError: no artifact, no checkpoint in it, a changed or missing file, a device that isn't there.
        AblationIntegrityError: the edit is missing or altered.
    """
    from ...editor.denoisers.components import named, open_network
    from ...editor.denoisers.pipelines import check_device
    from ...editor.edit.ablated_unet import AblatedUNet2DConditionModel

    root = Path(artifact)
    record = manifest.read(root)
    if "checkpoint" not in record.formats:
        raise SaeuronError(f"'{root}' has no checkpoint (formats: {', '.join(record.formats)}); export it with --format checkpoint")
    if check_files:
        contents.check(root, record)
    target = check_device(device)
    index = read_json(root / "model_index.json")
    family = family_of(index)
    dtype = dtype or dtype_of(record.precision)
    with quiet_loading():
        unet = AblatedUNet2DConditionModel.from_pretrained(root / "unet", torch_dtype=dtype)
        # diffusers would want to run the artifact's code file for the UNet; ours is put in afterwards instead.
        parts = {name: open_network(root / name, family.class_of(name), dtype) for name in named(index, family, without=("unet",))}
        rest = family.cls.from_pretrained(root, unet=None, **parts, torch_dtype=dtype, local_files_only=True, **family.fixed)
        pipeline = rebuilt(rest, unet=unet)
    return pipeline.to(target)
