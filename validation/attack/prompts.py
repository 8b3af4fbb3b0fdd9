"""Prompts with open places, whose token embeddings are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.sampling import denoise, initial_latents

# Stands for the concept's name while a judge builds its prompt.
_MARK = "\N{SNOWMAN}"


@dataclass(frozen=True)
class Template:
    """Token ids of one prompt; those at `slots` are replaced by learned embeddings."""

    ids: list[int]
    slots: list[int]


def length(pipeline: Any) -> int:
    """Tokens of a context."""
    return min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)


def words(pipeline: Any, text: str) -> list[int]:
    """Ids of a text without start and end."""
    return list(pipeline.tokenizer(text, add_special_tokens=False).input_ids)


def _template(pipeline: Any, before: list[int], slots: int, after: list[int]) -> Template:
    tokenizer = pipeline.tokenizer
    ids = [tokenizer.bos_token_id, *before, *[tokenizer.eos_token_id] * slots, *after, tokenizer.eos_token_id]
    room = length(pipeline)
    if len(ids) > room:
        if not slots:
            text = tokenizer.decode(ids[1:-1])
            raise SaeuronError(
                f"the prompt '{text[:60]}{'…' if len(text) > 60 else ''}' has {len(ids)} tokens, the text encoder reads {room}; shorten it"
            )
        raise SaeuronError(
            f"a prompt with {slots} learned tokens has {len(ids)} tokens, the text encoder reads {room}; take fewer --tokens"
        )
    first = 1 + len(before)
    return Template(ids + [tokenizer.pad_token_id] * (room - len(ids)), list(range(first, first + slots)))


def with_prefix(pipeline: Any, text: str, slots: int) -> Template:
    """`slots` learned tokens, then the text."""
    return _template(pipeline, [], slots, words(pipeline, text))


def with_name_learned(pipeline: Any, text: str, name: str, slots: int) -> Template:
    """The text with `slots` learned tokens in the place of `name`."""
    before, found, after = text.partition(name)
    if not found:
        raise SaeuronError(f"'{name}' is not in the prompt '{text}'")
    return _template(pipeline, words(pipeline, before), slots, words(pipeline, after))


def embedding_table(pipeline: Any) -> torch.Tensor:
    """Token embeddings `[V, D]`."""
    return pipeline.text_encoder.get_input_embeddings().weight


def vocabulary(pipeline: Any) -> torch.Tensor:
    """Ids of all tokens that a text can hold: special ones left out; int64, ascending."""
    special = set(pipeline.tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(embedding_table(pipeline))) if i not in special and i < len(pipeline.tokenizer)])


def nearest(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Index of the nearest row (Euclidean) of each vector: `[k, D]`, `[V, D]` → `[k]`; of equal ones the first."""
    return torch.cdist(vectors.detach().float(), rows.float()).argmin(-1)


def context(pipeline: Any, templates: Sequence[Template], vectors: torch.Tensor | None) -> torch.Tensor:
    """Text encoder's output `[B, L, D]`, differentiable by `vectors [k, D]`."""
    encoder = pipeline.text_encoder
    ids = torch.tensor([t.ids for t in templates], device=encoder.device)
    if vectors is None or not templates[0].slots:
        return encoder(ids)[0]
    places = torch.tensor([t.slots for t in templates], device=ids.device)

    def put(module: Any, args: Any, found: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(places), device=found.device)[:, None].expand_as(places)
        return found.index_put((rows, places), vectors.to(found)[None].expand(len(places), -1, -1))

    handle = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        return encoder(ids)[0]
    finally:
        handle.remove()


@torch.no_grad()
def draw(
    pipeline: Any, contexts: torch.Tensor, seeds: Sequence[int], steps: int, guidance: float, output_type: str = "pil", batch_size: int = 32
) -> Any:
    """Pictures (or latents `[B, C, h, w]`) from contexts `[B, L, D]`, one seed each; the empty prompt is the other half of guidance."""
    found: list[Any] = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        noise = initial_latents(pipeline, seeds[part])
        found.extend(denoise(pipeline, None, noise, seeds[part], steps, guidance, output_type, prompt_embeds=contexts[part]))
    return torch.stack(found) if output_type == "latent" else found
