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
        a pipeline of the original's class, with the edited network.

    Raises:
        SaeuronError: no artifact, no checkpoint in it, a changed or missing file, a device that isn't there.
        AblationIntegrityError: the edit is missing or altered.
    """
    from ...editor.denoisers.components import named, open_network
    from ...editor.denoisers.pipelines import check_device
    from ...editor.edit.bake import KINDS

    root = Path(artifact)
    record = manifest.read(root)
    if "checkpoint" not in record.formats:
        raise SaeuronError(f"'{root}' has no checkpoint (formats: {', '.join(record.formats)}); export it with --format checkpoint")
    if check_files:
        contents.check(root, record)
    target = check_device(device)
    index = read_json(root / "model_index.json")
    family = family_of(index)
    streams = family.denoiser.flows and target.type == "cpu"
    dtype, part = dtype or dtype_of(record.precision), family.denoiser.component
    with quiet_loading():
        if record.edit.hookpoints:
            network = _edited(root / part, KINDS[family.denoiser.cls], dtype, streams)
        else:  # an edit in the weights alone
            network = open_network(root / part, family.class_of(part), dtype, streams=streams)
        # diffusers would want to run the artifact's code file for the network; ours is put in afterwards instead.
        parts = {
            name: open_network(root / name, family.class_of(name), dtype, streams=streams) for name in named(index, family, without=(part,))
        }
        rest = family.cls.from_pretrained(root, **{part: None}, **parts, torch_dtype=dtype, local_files_only=True, **family.fixed)
        pipeline = rebuilt(rest, **{part: network})
    return pipeline.to(target)


def _edited(folder: Path, kind: Any, dtype: Any, streams: bool) -> Any:
    """The edited network; one too large for memory reads its weights from its file as it runs, and its edit at once, which is checked all the same."""
    import torch

    from ...editor.denoisers.components import weight_files
    from ...editor.denoisers.streamed import empty, is_large, stream

    files = weight_files(folder)[1]
    if streams and is_large(files, dtype):
        with empty(kind.__mro__[2]):  # the stock class, behind ours and what all of ours share
            network = torch.nn.Module.to(kind.from_config(kind.load_config(folder)), dtype)
        network.ablations.to(torch.float32)  # as the class itself has them until they are checked
        if stream(network, files, at_once=("ablations.", f"{kind.RENAMED}.")):
            network.check_edit()
            network.ablations.to(dtype)
            return network.eval().requires_grad_(False)
    # Also a file that lacks something, which the class says.
    return kind.from_pretrained(folder, torch_dtype=dtype)
