"""Trains SAEs on the activations of the running pipeline (method: arXiv 2501.18052, section 3.1; BatchTopK: 2412.06410).

Buffers of activations come from `ActivationStream`, steps from `sae_step`; this module holds the loop: schedule, several
processes, checkpoints, the report. One process or several train the same SAE: generation is shared out in fixed batches, a
step is shared out in fixed micro-batches, and both are put together in one order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..common.errors import SaeuronError
from ..common.files import read_json, reading
from ..common.names import folder_of, normalise
from ..common.writing import put_back, whole_file, whole_folder
from ..denoisers.families import family_of, network_of
from ..denoisers.sampling_settings import Sampling
from .formats.config import SaeConfig
from .initialise import initialise
from .sae import SparseAutoencoder
from .sae_step import DeadLatents, SaeStep, constrain_gradient, normalise_decoder
from .stream import ActivationStream, Buffer, Share
from .train_settings import TrainSettings


class TrainEvent(NamedTuple):
    """One optimiser step, for whoever shows progress."""

    step: int
    steps: int
    tokens: int
    hookpoint: str
    loss: float
    dead: int
    per_buffer: int
    """steps that one buffer serves"""


class Trainer:
    """Trains one SAE a hookpoint on one stream.

    Args:
        pipeline: the unedited text-to-image pipeline.
        hookpoints: blocks, one SAE each; all read the same pictures.
        prompts: drawn at random.
        settings: of the training.
        sampling: of the pipeline; METHOD: 50 steps, guidance 9.
        output: folder of the result; unfinished work lies in `output/training-state`.
        accelerator: an `accelerate.Accelerator` made with `settings.precision`; None makes one.
        cache: folder for buffers on disk; default: none is written.
        identity: hash of the model's files, recorded; a resumed training must have the same.

    Raises:
        SaeuronError: settings that can't be meant, a hookpoint that isn't there.
    """

    def __init__(
        self, pipeline: Any, hookpoints: Sequence[str], prompts: Sequence[str], settings: TrainSettings, sampling: Sampling, output: Path,
        accelerator: Any = None, cache: Path | None = None, identity: str = "",
    ) -> None:  # fmt: skip
        from accelerate import Accelerator

        self.accelerator = accelerator or Accelerator(
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision), cpu=network_of(pipeline).device.type == "cpu"
        )
        settings.check(self.accelerator.num_processes)
        self.settings, self.sampling, self.output = settings, sampling, output
        self.hookpoints = [normalise(h) for h in hookpoints]
        for name in self.hookpoints:
            family_of(pipeline).denoiser.find_hookpoint(network_of(pipeline), name)
        self._component = family_of(pipeline).denoiser.component
        share = Share(self.accelerator.process_index, self.accelerator.num_processes, self._gather)
        self.stream = ActivationStream(
            pipeline, dict.fromkeys(self.hookpoints, "output"), prompts, sampling, settings.pictures, cache, share, identity
        )
        self.held = ActivationStream(
            pipeline, dict.fromkeys(self.hookpoints, "output"), prompts, sampling, settings.held_out, cache, share, identity
        )
        self._record = {
            "settings": asdict(settings), "sampling": asdict(sampling), "hookpoints": self.hookpoints, "model_sha256": identity, "prompts": list(prompts),
        }  # fmt: skip
        self.step = 0
        self.filling: Callable[[str, int, int], None] = lambda what, done, total: None
        """told what is being generated, pictures done and pictures in all"""
        self._per_buffer = 0
        self._models: dict[str, Any] = {}
        self._optimizers: dict[str, Any] = {}
        self._dead: dict[str, DeadLatents] = {}

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(tensor.to(self.accelerator.device)).cpu()

    @property
    def state(self) -> Path:
        """Where unfinished work lies."""
        return self.output / "training-state"

    def train(self, progress: Callable[[TrainEvent], None] = lambda event: None) -> dict[str, Any] | None:
        """Train to the end, from the last checkpoint if there is one.

        Returns:
            the report, as written to `output/training.json`; None in every process but the first.
        """
        s, accelerator = self.settings, self.accelerator
        kept = self._unfinished()
        held = self.held.buffer(-1, progress=lambda done, total: self.filling("held-out pictures", done, total))
        buffer = self._fill(0, 0)
        self._build(buffer)
        self._resume(kept)
        per_pass = len(buffer.steps) // s.batch
        if per_pass < 1:
            raise SaeuronError(
                f"a buffer of {s.pictures} pictures holds {len(buffer.steps)} tokens, fewer than one batch of {s.batch}; raise pictures"
            )
        self._per_buffer = per_pass * s.passes
        at = (0, 0)
        while self.step < s.steps:
            number, rest = divmod(self.step, self._per_buffer)
            shuffle, position = divmod(rest, per_pass)
            if (number, shuffle) != at:
                buffer, at = self._fill(number, shuffle), (number, shuffle)
            part = slice(position * s.batch, (position + 1) * s.batch)
            for name in self.hookpoints:
                event = self._one(name, buffer.tokens[name][part])
                progress(event)
            self.step += 1
            if self.step % s.checkpoint_every == 0 and self.step < s.steps:
                self._checkpoint()
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return None
        return self._finish(held)

    def _fill(self, number: int, shuffle: int) -> Buffer:
        return self.stream.buffer(number, shuffle, lambda done, total: self.filling(f"buffer {number + 1}", done, total))

    def _build(self, buffer: Buffer) -> None:
        """One SAE a hookpoint with its optimiser, started from the first buffer."""
        s = self.settings
        for name in self.hookpoints:
            tokens = buffer.tokens[name]
            width = tokens.shape[1]
            if s.k > width * s.expansion:
                raise SaeuronError(f"k = {s.k} is larger than the {width * s.expansion} latents at '{name}'")
            sae = SparseAutoencoder(SaeConfig(width, width * s.expansion, s.k, s.input_unit_norm))
            initialise(sae, tokens[: min(len(tokens), 32_768)], torch.Generator().manual_seed(s.seed))
            model = SaeStep(sae, batch_topk=s.batch_topk)
            fused = self.accelerator.device.type in ("cpu", "cuda")
            optimizer = torch.optim.Adam(model.parameters(), lr=s.rate, fused=fused)
            self._models[name], self._optimizers[name] = self.accelerator.prepare(model, optimizer)
            self._dead[name] = DeadLatents(sae.config.num_latents, s.dead_after).to(self.accelerator.device)

    def _sae(self, name: str) -> SparseAutoencoder:
        return self.accelerator.unwrap_model(self._models[name]).sae

    def _rate(self) -> float:
        s = self.settings
        fall = (s.steps - self.step) / max(1.0, (1 - s.decay_from) * s.steps)
        rise = (self.step + 1) / s.warmup if s.warmup else 1.0
        return s.rate * min(1.0, fall, rise)

    def _one(self, name: str, tokens: torch.Tensor) -> TrainEvent:
        """One optimiser step of one SAE on `[batch, d]`."""
        s, accelerator = self.settings, self.accelerator
        model, optimizer, dead = self._models[name], self._optimizers[name], self._dead[name]
        for group in optimizer.param_groups:
            group["lr"] = self._rate()
        mine = tokens.chunk(s.micro_batches)[accelerator.process_index :: accelerator.num_processes]
        mask = dead.dead
        fired = torch.zeros_like(dead.silent, dtype=torch.bool)
        losses = []
        optimizer.zero_grad()
        for number, part in enumerate(mine):
            last = number + 1 == len(mine)
            context = torch.enable_grad() if last else accelerator.no_sync(model)
            with context, accelerator.autocast():
                result = model(part.to(accelerator.device).float(), mask if bool(mask.any()) else None)
                accelerator.backward(result.loss / len(mine))
            fired |= result.fired
            losses.append(result.loss.detach())
        sae = self._sae(name)
        constrain_gradient(sae)
        optimizer.step()
        normalise_decoder(sae)
        loss = torch.stack(losses).mean()
        if accelerator.num_processes > 1:
            loss = accelerator.reduce(loss, "mean")
            fired = accelerator.reduce(fired.int(), "sum") > 0
        dead.update(fired, len(tokens))
        if not bool(torch.isfinite(loss)):
            raise SaeuronError(f"the loss at '{name}' is not finite in step {self.step}; lower the rate, or train at a higher precision")
        accelerator.log({f"{name}/loss": float(loss), f"{name}/dead": int(mask.sum()), "rate": self._rate()}, step=self.step)
        return TrainEvent(self.step + 1, s.steps, (self.step + 1) * s.batch, name, float(loss), int(mask.sum()), self._per_buffer)

    def _checkpoint(self) -> None:
        """Everything that the next step depends on, in a folder that is there whole or not at all."""
        accelerator = self.accelerator
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with whole_folder(self.state) as made:
                for name in self.hookpoints:
                    held = {
                        "sae": self._sae(name).state_dict(),
                        "optimizer": self._optimizers[name].state_dict(),
                        "dead": self._dead[name].state_dict(),
                    }
                    torch.save(held, made / f"{name}.pt")
                if accelerator.scaler is not None:
                    torch.save(accelerator.scaler.state_dict(), made / "scaler.pt")
                (made / "state.json").write_text(json.dumps({**self._record, "step": self.step}))
        accelerator.wait_for_everyone()

    def _unfinished(self) -> dict[str, Any] | None:
        """What a checkpoint says of itself; refused, before anything is generated, where it belongs to another training."""
        if self.accelerator.is_main_process:
            put_back(self.state)
        self.accelerator.wait_for_everyone()
        place = self.state
        if not (place / "state.json").is_file():
            return None
        kept = read_json(place / "state.json")
        if type(kept.get("step")) is not int:
            raise SaeuronError(f"'{place / 'state.json'}' is damaged: it names no step; remove '{place}' to begin anew")
        for key, value in json.loads(json.dumps(self._record)).items():
            if kept.get(key) != value:
                differs = _difference(kept.get(key), value)
                raise SaeuronError(
                    f"'{self.output}' holds an unfinished training with other {key}{differs}; give the same, or choose another --output"
                )
        return kept

    def _resume(self, kept: dict[str, Any] | None) -> None:
        if kept is None:
            return
        place = self.state
        for name in self.hookpoints:
            with reading(place / f"{name}.pt", "a checkpoint of this training (remove its folder to begin anew)"):
                held = torch.load(place / f"{name}.pt", map_location=self.accelerator.device, weights_only=True)
                self._sae(name).load_state_dict(held["sae"])
                self._optimizers[name].load_state_dict(held["optimizer"])
                self._dead[name].load_state_dict(held["dead"])
        if self.accelerator.scaler is not None and (place / "scaler.pt").is_file():
            self.accelerator.scaler.load_state_dict(torch.load(place / "scaler.pt", weights_only=True))
        self.step = kept["step"]

    def _finish(self, held: Buffer) -> dict[str, Any]:
        report: dict[str, Any] = {**self._record, "steps": self.step, "tokens": self.step * self.settings.batch, "saes": {}}
        for name in self.hookpoints:
            sae = self._sae(name).cpu().eval().requires_grad_(False)
            folder = folder_of(name, self._component)
            sae.save(self.output / folder, batch_topk=self.settings.batch_topk)
            report["saes"][name] = {
                "folder": folder,
                "sha256": sae.sha256(),
                "silent": int(self._dead[name].dead.sum()),
                **quality(sae, held.tokens[name], held),
            }
        # The mark of a finished training comes last; what a kill leaves of the state after it is read by nobody.
        with whole_file(self.output / "training.json") as made:
            made.write_text(json.dumps(report, indent=1) + "\n")
        shutil.rmtree(self.state, ignore_errors=True)
        return report


def _difference(kept: Any, wanted: Any) -> str:
    if isinstance(kept, dict) and isinstance(wanted, dict):
        for key in wanted:
            if kept.get(key) != wanted[key]:
                return f" ({key}: {kept.get(key)} there, {wanted[key]} here)"
    return ""


@torch.no_grad()
def quality(sae: SparseAutoencoder, tokens: torch.Tensor, buffer: Buffer, batch: int = 4096) -> dict[str, Any]:
    """How well an SAE reconstructs tokens, as it is used: per-token sparsification.

    Args:
        sae: the SAE.
        tokens: `[N, d]`, of `buffer`.
        buffer: says which denoising step each token is of.
        batch: tokens at a time.

    Returns:
        `fvu` (squared error over squared deviation from the mean), `explained_variance` (mean over channels of 1 - var(error)/var(x)),
        `l0` (active latents a token), `dead` (share of latents that never fire on these tokens); and the same for each denoising
        step under `by_timestep`, with `timestep`.
    """
    count = len(buffer.timesteps)
    d, n = sae.config.d_in, sae.config.num_latents
    sums = {name: torch.zeros(count, d, dtype=torch.float64) for name in ("x", "xx", "e", "ee")}
    active, fired, seen = torch.zeros(count, dtype=torch.float64), torch.zeros(count, n, dtype=torch.bool), torch.zeros(count)
    for start in range(0, len(tokens), batch):
        x, steps = tokens[start : start + batch].float(), buffer.steps[start : start + batch].long()
        z = sae.encode(x)
        error = (x - sae.decode(z, x)).double()
        for name, value in (("x", x.double()), ("xx", x.double().square()), ("e", error), ("ee", error.square())):
            sums[name].index_add_(0, steps, value)
        active.index_add_(0, steps, (z > 0).sum(-1).double())
        seen.index_add_(0, steps, torch.ones(len(x)))
        rows, latents = (z > 0).nonzero(as_tuple=True)
        fired[steps[rows], latents] = True

    def figures(total: Mapping[str, torch.Tensor], number: float, on: float, alive: torch.Tensor) -> dict[str, float]:
        deviation, spread = total["xx"] - total["x"].square() / number, total["ee"] - total["e"].square() / number
        return {
            "fvu": float(total["ee"].sum() / deviation.sum()), "explained_variance": float((1 - spread / deviation.clamp_min(1e-12)).mean()),
            "l0": on / number, "dead": 1 - float(alive.float().mean()),
        }  # fmt: skip

    whole = figures({k: v.sum(0) for k, v in sums.items()}, float(seen.sum()), float(active.sum()), fired.any(0))
    rows_by_step = [
        {"timestep": float(t), **figures({k: v[i] for k, v in sums.items()}, float(seen[i]), float(active[i]), fired[i])}
        for i, t in enumerate(buffer.timesteps)
    ]
    return {**whole, "by_timestep": rows_by_step}
