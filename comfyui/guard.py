"""The edit inside ComfyUI's model, and what makes that model fail rather than run without it. Knows ComfyUI's classes only by what it is given.

The edit is a permanent forward hook on each edited block: patches and wrappers lie on the patcher or in its options, where another node can replace
them. Its tensors lie outside the module tree, so that names of weights stay ComfyUI's own (for LoRA) and no cast touches the tables.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .edit_module import _STATE, FeatureAblation
from .fired import Fired

LAST = 999
"""noise levels are whole numbers from 0 to this"""


class EditError(RuntimeError):
    """The model was asked to run without its edit, or to be taken apart; the message says what did it and what to do."""


class Edit:
    """The edit of one loaded model, shared by all its clones.

    Args:
        blocks: name of the hookpoint → its edit, on the CPU.
        fired: what is told which features fired.
    """

    def __init__(self, blocks: dict[str, FeatureAblation], fired: Fired) -> None:
        self.blocks, self.fired = blocks, fired
        self.watching: Callable[[str, torch.Tensor], None] | None = None
        """is given decisions bool `[B, L, U]` of a hookpoint, in place of `fired`; any noise level from 0 to 1000 is taken meanwhile"""
        self._copies: dict[tuple[str, torch.device, torch.dtype], FeatureAblation] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Edit:
        return self  # it keeps a copy a device itself

    def on(self, name: str, like: torch.Tensor) -> FeatureAblation:
        """The edit at a hookpoint on the device and in the type of what it edits; tables stay float32."""
        key = name, like.device, like.dtype
        if key not in self._copies:
            made = copy.deepcopy(self.blocks[name])
            made.gate.register_forward_hook(functools.partial(self._decided, name, made))
            self._copies[key] = made.to(like.device, like.dtype)
        return self._copies[key]

    def release(self) -> None:
        """Let go of what lies on devices; it is made again when it is needed."""
        self._copies.clear()

    def _decided(self, name: str, block: FeatureAblation, module: nn.Module, args: tuple, fires: torch.Tensor) -> None:
        if self.watching:
            self.watching(name, fires)
        else:
            self.fired.add(name, fires, block.rows(_STATE.timestep), _STATE.shape, _STATE.options)

    # A compiler leaves it out: it reads what belongs to the thread.
    @torch.compiler.disable
    def edited(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of an edited block; raises `AblationIntegrityError` outside its network."""
        _STATE.shape = output.shape[-2:]
        with torch.autocast(output.device.type, enabled=False):
            return self.on(name, output).on_output(module, args, kwargs, output)

    def run(self, x: torch.Tensor, timesteps: torch.Tensor, options: dict[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the stock UNet with the edit.

        Args:
            x: noised latents `[B, C, h, w]`.
            timesteps: noise levels `[B]` or `[1]`.
            options: ComfyUI's `transformer_options`.
            forward: of the stock class.

        Raises:
            EditError: noise levels that aren't whole numbers from 0 to 999, or an edited block that was replaced or passed by.
        """
        self._enter(x, timesteps, options)
        try:
            found = forward()
            self._leave()
            return found
        finally:
            self._forget()

    @torch.compiler.disable
    def _enter(self, x: torch.Tensor, timesteps: torch.Tensor, options: dict[str, Any]) -> None:
        levels = torch.as_tensor(timesteps, device=x.device).float().reshape(-1)
        if not self.watching and not bool(((levels >= 0) & (levels <= LAST) & (levels == levels.round())).all()):
            raise EditError(
                f"this sampling gives noise levels that the edit doesn't know ({levels[0].item():g}; it knows whole ones from 0 to {LAST}): take away "
                "the node that changes the model's sampling (EDM, continuous or flow)"
            )
        if getattr(_STATE, "timestep", None) is not None:
            raise EditError("an edited model was called from inside an edited model's forward; run them one after another")
        _STATE.timestep, _STATE.left, _STATE.options = levels, len(self.blocks), options

    @torch.compiler.disable
    def _leave(self) -> None:
        if _STATE.left:
            raise EditError(
                "another node replaced an edited block, passed it by or ran it twice (a cache, a layer that is skipped), and its edit with it: "
                "take that node away, or load the artifact again"
            )
        _STATE.ran = getattr(_STATE, "ran", 0) + 1

    @torch.compiler.disable
    def _forget(self) -> None:
        _STATE.timestep, _STATE.left, _STATE.options, _STATE.shape = None, 0, None, None


def install(model: Any, places: dict[str, str], edit: Edit) -> None:
    """Put the edit into ComfyUI's model for good.

    Args:
        model: ComfyUI's `BaseModel`.
        places: name of the hookpoint → that of the block in `diffusion_model`.
        edit: its edits.
    """
    unet = model.diffusion_model
    for name, place in places.items():
        unet.get_submodule(place).register_forward_hook(functools.partial(edit.edited, name), with_kwargs=True)
    unet.saeuron_edit, model.saeuron_edit = edit, edit
    unet.__class__, model.__class__ = _edited_unet(type(unet)), _edited_model(type(model))


@functools.cache
def _edited_unet(stock: type) -> type:
    class EditedUNet(stock):  # type: ignore[misc, valid-type]
        """ComfyUI's UNet, which runs with its edit or not at all."""

        def forward(self, x: torch.Tensor, timesteps: Any = None, *args: Any, **kwargs: Any) -> Any:
            options = kwargs.get("transformer_options") or {}
            return self.saeuron_edit.run(x, timesteps, options, lambda: super(EditedUNet, self).forward(x, timesteps, *args, **kwargs))

    return EditedUNet


@functools.cache
def _edited_model(stock: type) -> type:
    class EditedModel(stock):  # type: ignore[misc, valid-type]
        """ComfyUI's model around it."""

        def apply_model(self, *args: Any, **kwargs: Any) -> Any:
            before = getattr(_STATE, "ran", 0)
            found = super().apply_model(*args, **kwargs)
            if getattr(_STATE, "ran", 0) == before:
                raise EditError(
                    "another node replaced the edited UNet or passed it by, and its edit with it: take that node away, or load it again"
                )
            return found

        def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
            raise EditError(
                "an edited model can't be saved by ComfyUI: the file would hold the weights without the edit; keep the artifact itself"
            )

    return EditedModel


def guard(patcher: Any) -> None:
    """Let neither this patcher nor any clone of it give its weights to a merge, or take another model's."""
    if not getattr(type(patcher), "saeuron_guarded", False):
        patcher.__class__ = _guarded(type(patcher))
    if not patcher.get_callbacks("on_clone", _KEY):
        patcher.add_callback_with_key("on_clone", _KEY, _on_clone)
        patcher.add_callback_with_key("on_pre_run", _KEY, _on_pre_run)
        patcher.add_callback_with_key("on_detach", _KEY, _on_detach)


_KEY = "saeuron"


def _on_clone(old: Any, new: Any) -> None:
    guard(new)


def _on_pre_run(patcher: Any) -> None:
    patcher.model.saeuron_edit.fired.clear()


def _on_detach(patcher: Any, unpatch_all: bool) -> None:
    patcher.model.saeuron_edit.release()


def _check(patches: Any) -> None:
    # A merge's patches are lists of another model's weights, or say that they are a whole model; a LoRA's are neither.
    if any(isinstance(patch, list) or (isinstance(patch, tuple) and patch[0] == "model_as_lora") for patch in patches.values()):
        raise EditError("an edited model can't be merged: its edit was made for, and proven with, its own weights")


@functools.cache
def _guarded(stock: type) -> type:
    class GuardedPatcher(stock):  # type: ignore[misc, valid-type]
        """ComfyUI's patcher of an edited model."""

        saeuron_guarded = True

        def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
            raise EditError("an edited model can't be merged: another model would get its weights without its edit")

        def add_patches(self, patches: Any, *args: Any, **kwargs: Any) -> Any:
            _check(patches)
            return super().add_patches(patches, *args, **kwargs)

        def add_hook_patches(self, hook: Any, patches: Any, *args: Any, **kwargs: Any) -> Any:
            _check(patches)
            return super().add_hook_patches(hook, patches, *args, **kwargs)

    return GuardedPatcher
