"""The sparse autoencoder: encode, sparsify, decode, load, save (METHOD: arXiv 2501.18052, section 3.1)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ..common.errors import SaeuronError
from ..common.writing import whole_file
from .formats import read
from .formats.config import SaeConfig, SaeFile


class TopLatents(NamedTuple):
    """The k largest latents of each token, zero ones included."""

    values: torch.Tensor
    """`[..., k]`, descending"""
    indices: torch.Tensor
    """`[..., k]`, int64"""


class SparseAutoencoder(nn.Module):
    """Sparse autoencoder of tokens `[..., d]`.

    `z = relu(W_enc (x - b_dec) + b_enc)`, the k largest kept (`jumprelu`: those above `threshold [n]`), `x̂ = z W_dec + b_dec`.
    Taking the k largest before or after the ReLU is the same: it differs only in which zeros are kept.
    """

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        n, d = config.num_latents, config.d_in
        self.W_enc = nn.Parameter(torch.zeros(n, d))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.W_dec = nn.Parameter(torch.zeros(n, d))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if config.activation == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(n))

    def _scale(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and divisor of each token, `[..., 1]`."""
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 1e-5

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """What the encoder's product takes of tokens `[..., d]`: normalised and without `b_dec`, where the SAE does so."""
        if self.config.input_unit_norm:
            mean, scale = self._scale(x)
            x = (x - mean) / scale
        return x - self.b_dec if self.config.subtract_bias else x

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """All latents before sparsification: `[..., d]` → `[..., n]`, non-negative; float32 or wider for `jumprelu`.

        Directions are read so too, and theirs is a small difference of large numbers: in 16 bits mostly rounding.
        """
        dtype = self.W_enc.dtype
        if self.config.activation == "jumprelu":
            dtype = torch.promote_types(dtype, torch.float32)
        return F.relu(F.linear(self.encoded(x).to(dtype), self.W_enc.to(dtype), self.b_enc.to(dtype)))

    def top(self, latents: torch.Tensor) -> TopLatents:
        """The k largest latents of each token; `topk` only."""
        assert self.config.k is not None
        return TopLatents(*latents.topk(self.config.k, dim=-1))

    def active(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[..., n]` with all inactive ones zeroed; of latents that tie at place k, torch.topk picks."""
        if self.config.activation == "jumprelu":
            return latents * (latents > self.threshold)
        top = self.top(latents)
        return torch.zeros_like(latents).scatter(-1, top.indices, top.values)

    def kth(self, latents: torch.Tensor) -> torch.Tensor | None:
        """The k-th largest latent of each token `[..., 1]`; None for `jumprelu`."""
        return None if self.config.activation == "jumprelu" else self.top(latents).values[..., -1:]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[..., d]` → active latents `[..., n]`, zero elsewhere."""
        return self.active(self.latents(x))

    def decode(self, dense: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """Dense latents `[..., n]` → tokens `[..., d]`; `like` are the encoded tokens, needed with `input_unit_norm`."""
        decoded = dense @ self.W_dec.to(dense.dtype) + self.b_dec.to(dense.dtype)
        if self.config.input_unit_norm:
            if like is None:
                raise ValueError("an SAE with input_unit_norm needs the encoded tokens to decode")
            mean, scale = self._scale(like)
            decoded = decoded * scale + mean
        return decoded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct tokens `[..., d]`."""
        return self.decode(self.encode(x), x)

    def sha256(self) -> str:
        """Hash of config and weights (widened to float32)."""
        always = ("d_in", "num_latents", "k", "input_unit_norm")
        said = {f.name: getattr(self.config, f.name) for f in fields(SaeConfig)}
        # What a plain top-k SAE doesn't need to say leaves its hash as it always was.
        said = {f.name: said[f.name] for f in fields(SaeConfig) if f.name in always or said[f.name] != f.default}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32, batch_topk: bool = False) -> None:
        """Write SAeUron's own form (`cfg.json`, `sae.safetensors`) into `folder`, tensors as `dtype`.

        `batch_topk` records how the SAE was trained; at inference it is per-token top-k all the same.

        Raises:
            SaeuronError: that form has no words for this SAE (JumpReLU, block deltas, encoding without `b_dec`).
        """
        folder = Path(folder)
        if self.config != SaeConfig(self.config.d_in, self.config.num_latents, self.config.k, self.config.input_unit_norm):
            raise SaeuronError("SAeUron's files hold top-k SAEs of a block's output only; keep this SAE in the form that it came in")
        folder.mkdir(parents=True, exist_ok=True)
        c = self.config
        settings = {
            "expansion_factor": c.num_latents // c.d_in, "normalize_decoder": True, "num_latents": c.num_latents, "k": c.k,
            "batch_topk": batch_topk, "sample_topk": False, "input_unit_norm": c.input_unit_norm, "multi_topk": False, "d_in": c.d_in,
        }  # fmt: skip
        tensors = {"encoder.weight": self.W_enc, "encoder.bias": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        with whole_file(folder / "cfg.json") as config, whole_file(folder / "sae.safetensors") as weights:
            config.write_text(json.dumps(settings))
            save_file({k: v.detach().to("cpu", dtype).contiguous() for k, v in tensors.items()}, weights)

    @classmethod
    def load(cls, source: str | Path, hookpoint: str | None = None, revision: str | None = None) -> SparseAutoencoder:
        """Read an SAE.

        Args:
            source: a folder with `cfg.json`, a folder that holds `<hookpoint>/cfg.json`, or a Hub id of such a folder.
            hookpoint: the block's name, with or without `unet.`.
            revision: Hub revision.

        Raises:
            SaeuronError: nothing there, an unknown or unsupported form, damaged or inconsistent tensors.
        """
        return cls.from_file(read(source, hookpoint, revision))

    @classmethod
    def from_file(cls, file: SaeFile) -> SparseAutoencoder:
        """Build from what a reader found, checking shapes and finiteness."""
        config, tensors, where = file
        with torch.device("meta"):
            sae = cls(config)
        for name, parameter in sae.named_parameters():
            tensor = tensors[name]
            if tensor.shape != parameter.shape:
                raise SaeuronError(f"{where}: {name} has shape {list(tensor.shape)}, the config asks for {list(parameter.shape)}")
            if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
                raise SaeuronError(
                    f"{where}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')}, expected floats of 16, 32 or 64 bits"
                )
            if tensor.layout != torch.strided:
                raise SaeuronError(f"{where}: {name} is stored as a sparse tensor, expected a dense one")
            if not bool(torch.isfinite(tensor).all()):
                raise SaeuronError(f"{where}: {name} holds NaN or infinite values; the file is damaged")
        sae.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        return sae.eval().requires_grad_(False)


def check_width(sae: SparseAutoencoder, channels: int, hookpoint: str) -> None:
    """Raise unless the SAE reads as many channels as the hookpoint has."""
    if sae.config.d_in != channels:
        raise SaeuronError(
            f"the SAE reads {sae.config.d_in} channels, but hookpoint '{hookpoint}' has {channels}; is it the SAE of another block or model?"
        )
