"""Networks too large for memory: their weights stay in their files, and each layer reads its own when it runs.

In their place lie tensors of the same shape and type that take no memory and hold NaN, so whatever doesn't ask for the real ones is seen to fail.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models import embeddings
from torch import nn

from ..common.errors import SaeuronError
from ..common.files import read_header

LARGE = 4 << 30
"""bytes of a network's weights in the type in which they are used; above, they stay in their files"""
SMALL = 1 << 20
"""bytes; a tensor that is smaller lies in memory all the same"""
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    file: Path
    name: str
    """there"""
    shape: tuple[int, ...]
    start: int
    """its first byte in the file"""
    held: torch.dtype
    types: tuple[torch.dtype, ...] = ()
    """what it is cast to, one after the other"""

    @property
    def dtype(self) -> torch.dtype:
        """In which it is read."""
        return (self.held, *self.types)[-1]

    @property
    def nbytes(self) -> int:
        """As it is read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def cast(self, dtype: torch.dtype) -> Stored:
        """The same, rounded to this type after all others."""
        return self if dtype == self.dtype else replace(self, types=(*self.types, dtype))

    def read(self) -> torch.Tensor:
        """Its values; no page of the file stays in memory.

        Raises:
            SaeuronError: the file ends before they do, or they are not finite.
        """
        raw = torch.empty(math.prod(self.shape) * self.held.itemsize, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, done = memoryview(raw.numpy().data), 0
            while done < len(view) and (count := file.readinto(view[done:])):  # a single call reads 2 GiB at most
                done += count
        if done < len(raw):
            raise SaeuronError(f"{self.file} is truncated ('{self.name}' is not whole); take the folder again from its source")
        value = raw.view(self.held).reshape(self.shape)
        for dtype in self.types:
            value = value.to(dtype)
        return value


class Streamed:
    """Has each layer of a network read its weights before it runs, and drop them afterwards.

    Args:
        network: its tensors of these names are replaced by ones without memory; equal ones stay one.
        stored: name in its `state_dict` → where the tensor lies.
    """

    def __init__(self, network: nn.Module, stored: Mapping[str, Stored]) -> None:
        self.stored = dict(stored)
        self._finite: set[tuple[Path, str]] = set()
        self._owners: dict[nn.Module, dict[str, str]] = {}
        for name in self.stored:
            path, _, key = name.rpartition(".")
            self._owners.setdefault(network.get_submodule(path), {})[key] = name
        # Tied weights are one tensor, which exporters and savers look for.
        held: dict[int, str] = {}
        self._first = {
            name: held.setdefault(id(_get(owner, key)), name) for owner, names in self._owners.items() for key, name in names.items()
        }
        self._held: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []
        self._replace(_nothing)
        self._watch()
        _KNOWN[network] = self

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the network.

        Raises:
            SaeuronError: see `Stored.read`.
        """
        stored = self.stored[name]
        value, known = stored.read(), (stored.file, stored.name)
        if known not in self._finite:
            if not value.isfinite().all():
                raise SaeuronError(
                    f"{stored.file}: the weight {stored.name} holds values that are not finite in {str(stored.dtype).removeprefix('torch.')}; take the folder again from its source, or another --precision"
                )
            self._finite.add(known)
        return value

    @contextmanager
    def apart(self, make: Callable[[Stored], torch.Tensor]) -> Iterator[None]:
        """The network without a hook, and with tensors that `make` gives, while the context is open."""
        self._unwatch()
        self._replace(make)
        try:
            yield
        finally:
            self._replace(_nothing)
            self._watch()

    def _replace(self, make: Callable[[Stored], torch.Tensor]) -> None:
        self._held.clear()
        for owner, names in self._owners.items():
            for key, name in names.items():
                first = self._first[name]
                if first not in self._held:
                    value = make(self.stored[first])
                    self._held[first] = nn.Parameter(value, requires_grad=False) if key in owner._parameters else value
                _put(owner, key, self._held[first])

    def _watch(self) -> None:
        for owner in self._owners:
            self._handles.append(owner.register_forward_pre_hook(self._fill))
            self._handles.append(owner.register_forward_hook(self._drop, always_call=True))

    def _unwatch(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _fill(self, owner: nn.Module, args: Any) -> None:
        for key, name in self._owners[owner].items():
            _put(owner, key, self.read(name))

    def _drop(self, owner: nn.Module, args: Any, output: Any) -> None:
        for key, name in self._owners[owner].items():
            _put(owner, key, self._held[self._first[name]])


_KNOWN: WeakKeyDictionary[nn.Module, Streamed] = WeakKeyDictionary()


def _nothing(stored: Stored) -> torch.Tensor:
    return torch.full((1,) * len(stored.shape), float("nan"), dtype=stored.dtype).expand(stored.shape)


def _get(owner: nn.Module, key: str) -> torch.Tensor | None:
    return owner._parameters.get(key, owner._buffers.get(key))


def _put(owner: nn.Module, key: str, value: torch.Tensor) -> None:
    if key in owner._parameters:
        owner._parameters[key] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[key] = value


@contextmanager
def empty(cls: Any) -> Iterator[None]:
    """Networks of a class are built on torch's meta device while the context is open.

    An SD3's table of positions is not computed then, which took 9 GB and most of the time for SD3.5-medium's; its files have it.
    """
    with torch.device("meta"):
        if "pos_embed_max_size" not in inspect.signature(cls.__init__).parameters:
            yield
            return
        own = embeddings.get_2d_sincos_pos_embed
        embeddings.get_2d_sincos_pos_embed = lambda width, side, **options: torch.empty(side * side, width)
        try:
            yield
        finally:
            embeddings.get_2d_sincos_pos_embed = own


def streamed(network: nn.Module) -> Streamed | None:
    """How a network's weights are read; None where they lie in memory."""
    return _KNOWN.get(network)


def is_streaming(hook: Any) -> bool:
    """Whether a module's hook reads or drops its weights."""
    return isinstance(getattr(hook, "__self__", None), Streamed)


def weights_of(network: nn.Module, named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The values of tensors of a network, one at a time: of a streamed one never two are in memory.

    Args:
        network: the network.
        named: some of its tensors, by their names in its `state_dict`.
    """
    held = streamed(network)
    for name, value in named:
        yield name, held.read(name) if held and name in held.stored else value


def places(files: Iterable[Path]) -> dict[str, Stored]:
    """Name → where it lies, of floats and int64 in safetensors files.

    Raises:
        SaeuronError: a file that isn't whole.
    """
    found = {}
    for path in files:
        read_header(path)  # the library's own checks: sizes, overlaps, bounds
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _TYPES:
                found[name] = Stored(path, name, tuple(entry["shape"]), 8 + length + entry["data_offsets"][0], _TYPES[entry["dtype"]])
    return found


def is_large(files: Iterable[Path], dtype: torch.dtype | None) -> bool:
    """Whether a network of these files is too large for memory, used in this type."""
    files = list(files)
    if any(path.suffix != ".safetensors" for path in files):
        return False  # a pickle is read as a whole
    width = (dtype or torch.float32).itemsize
    return sum(math.prod(stored.shape) for stored in places(files).values()) * width > LARGE


def fits(network: nn.Module, files: Iterable[Path]) -> bool:
    """Whether a network and safetensors files hold the same tensors, by names and shapes."""
    return _matched(network, files) is not None


def _matched(network: nn.Module, files: Iterable[Path]) -> dict[int, Stored] | None:
    """Number (`id`) of each tensor of a network → where it lies; None where they aren't the same."""
    held, state = places(files), network.state_dict(keep_vars=True)
    found = {id(value): held[name] for name, value in state.items() if name in held}
    lacking = any(id(value) not in found or found[id(value)].shape != value.shape for value in state.values())
    odd = set(held) - set(state) or any(b.is_meta for n, b in network.named_buffers() if n not in state)
    return None if lacking or odd else found


def stream(network: nn.Module, files: Iterable[Path], at_once: tuple[str, ...] = ()) -> bool:
    """Have a network on torch's meta device read its weights from safetensors files; small ones are read at once.

    Args:
        network: of all whose tensors only names, shapes and types are known.
        files: its own.
        at_once: beginnings of names of tensors that are read at once, however large.

    Returns:
        False, and the network is as it was, where it and the files don't hold the same tensors: then it has to be opened as a whole.
    """
    if (found := _matched(network, files)) is None:
        return False
    state = network.state_dict(keep_vars=True)
    stored = {name: found[id(value)].cast(value.dtype) for name, value in state.items()}
    reader = Streamed(network, {name: place for name, place in stored.items() if place.nbytes >= SMALL and not name.startswith(at_once)})
    for name, place in stored.items():
        if name not in reader.stored:
            path, _, key = name.rpartition(".")
            _put(network.get_submodule(path), key, place.read())
    return True


def carry(network: nn.Module, other: nn.Module, renamed: Callable[[str], str]) -> None:
    """Have another network read the weights of this one, if that reads its own; names there are `renamed(name)`."""
    if held := streamed(network):
        Streamed(other, {renamed(name): stored for name, stored in held.stored.items()})


def widened(network: nn.Module) -> Any:
    """A copy that computes in float32 with the same, rounded weights."""
    held = streamed(network)
    if held is None:
        return copy.deepcopy(network).float()
    with held.apart(lambda stored: torch.empty(stored.shape, dtype=stored.dtype, device="meta")):
        twin = copy.deepcopy(network).float()
    Streamed(twin, {name: stored.cast(torch.float32) for name, stored in held.stored.items()})
    return twin
