"""Prompts with open places, whose token embeddings are learned; of a pipeline with several text encoders in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.denoiser import Text
from ...editor.denoisers.families import TextEncoder, family_of
from ...editor.denoisers.sampling import denoise, initial_latents

_OPEN = 0
"""id at an open place"""


@dataclass(frozen=True)
class Template:
    """Token ids of one prompt; those at `slots` are replaced by learned embeddings."""

    ids: list[int]
    slots: list[int]
    others: tuple[Template, ...] = ()
    """the same prompt in the pipeline's further text encoders"""


class Reader(NamedTuple):
    """A text encoder of a pipeline with its tokenizer."""

    text: TextEncoder
    tokenizer: Any
    network: Any
    room: int
    """tokens of a context"""

    @property
    def embeddings(self) -> Any:
        """The module that turns ids into vectors. A T5 holds its table twice, and reads the encoder's."""
        return (self.network.encoder if self.text.cls.startswith("T5") else self.network).get_input_embeddings()

    @property
    def table(self) -> torch.Tensor:
        """Token embeddings `[V, D]`."""
        return self.embeddings.weight

    def words(self, text: str) -> list[int]:
        """Ids of a text without start and end."""
        # A T5 would make a token of its own of a blank at an end.
        text = text if self.text.cls.startswith("CLIP") else text.strip()
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def vocabulary(self) -> torch.Tensor:
        """Ids of all tokens that a text can hold: special ones left out; int64, ascending."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([i for i in range(len(self.table)) if i not in special and i < len(self.tokenizer)])

    def template(self, before: list[int], slots: int, after: list[int]) -> Template:
        """Ids with `slots` open places between two texts."""
        tokenizer = self.tokenizer
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if self.text.cuts:  # as its pipeline does: another encoder reads the whole
            after = after[: max(0, self.room - len(start) - len(before) - slots - 1)]
            before = before if slots else before[: self.room - len(start) - 1]
        # What stands at an open place is replaced; but a CLIP's pooled state is that of the first end, so it may be none.
        ids = [*start, *before, *[_OPEN] * slots, *after, tokenizer.eos_token_id]
        if len(ids) > self.room:
            if not slots:
                text = tokenizer.decode(ids[len(start) : -1])
                raise SaeuronError(
                    f"the prompt '{text[:60]}{'…' if len(text) > 60 else ''}' has {len(ids)} tokens, the text encoder reads {self.room}; shorten it"
                )
            raise SaeuronError(
                f"a prompt with {slots} learned tokens has {len(ids)} tokens, the text encoder reads {self.room}; take fewer --tokens"
            )
        first = len(start) + len(before)
        return Template(ids + [tokenizer.pad_token_id] * (self.room - len(ids)), list(range(first, first + slots)))


def readers(pipeline: Any) -> list[Reader]:
    """A pipeline's text encoders, in its order."""
    found = []
    for text in family_of(pipeline).text_encoders:
        tokenizer, network = getattr(pipeline, text.tokenizer), getattr(pipeline, text.name)
        # A T5 has no table of positions.
        most = getattr(network.config, "max_position_embeddings", None)
        found.append(Reader(text, tokenizer, network, min(text.tokens(pipeline), most or text.tokens(pipeline))))
    return found


def length(pipeline: Any) -> int:
    """Tokens of a context of the first text encoder."""
    return readers(pipeline)[0].room


def words(pipeline: Any, text: str) -> list[int]:
    """Ids of a text without start and end, of the first text encoder."""
    return readers(pipeline)[0].words(text)


def _template(pipeline: Any, before: str, slots: int, after: str) -> Template:
    first, *others = (reader.template(reader.words(before), slots, reader.words(after)) for reader in readers(pipeline))
    return Template(first.ids, first.slots, tuple(others))


def with_prefix(pipeline: Any, text: str, slots: int) -> Template:
    """`slots` learned tokens, then the text."""
    return _template(pipeline, "", slots, text)


def cut_to_fit(pipeline: Any, text: str) -> tuple[Template, bool]:
    """The text without learned tokens, as a pipeline reads it: what is too long is cut. And whether it was."""
    reader = readers(pipeline)[0]
    ids, room = reader.words(text), reader.room - 2
    return reader.template(ids[:room], 0, []), len(ids) > room


def with_name_learned(pipeline: Any, text: str, name: str, slots: int) -> Template:
    """The text with `slots` learned tokens in the place of `name`."""
    before, found, after = text.partition(name)
    if not found:
        raise SaeuronError(f"'{name}' is not in the prompt '{text}'")
    return _template(pipeline, before, slots, after)


def embedding_table(pipeline: Any) -> torch.Tensor:
    """Token embeddings `[V, D]` of the first text encoder."""
    return readers(pipeline)[0].table


def vocabulary(pipeline: Any) -> torch.Tensor:
    """`Reader.vocabulary` of the first text encoder."""
    return readers(pipeline)[0].vocabulary()


def nearest(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Index of the nearest row (Euclidean) of each vector: `[k, D]`, `[V, D]` → `[k]`; of equal ones the first."""
    return torch.cdist(vectors.detach().float(), rows.float()).argmin(-1)


def context(pipeline: Any, templates: Sequence[Template], vectors: torch.Tensor | Sequence[torch.Tensor] | None) -> Text:
    """What the denoiser is given of the prompts, differentiable by `vectors`: `[k, D]` for all, or `[B, k, D]`; of several text encoders one each."""
    every = readers(pipeline)
    learned: Sequence[torch.Tensor | None] = [vectors] if isinstance(vectors, torch.Tensor) else vectors or [None] * len(every)
    encoded = {}
    for place, (reader, own) in enumerate(zip(every, learned, strict=True)):
        parts = [t if place == 0 else t.others[place - 1] for t in templates]
        encoded[reader.text.name] = _encoded(reader, parts, own)
    return family_of(pipeline).denoiser.text(encoded)


def _encoded(reader: Reader, templates: Sequence[Template], vectors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """`TextEncoder.encode` of templates of this encoder."""
    ids = torch.tensor([t.ids for t in templates], device=reader.network.device)
    if vectors is None or not templates[0].slots:
        return reader.text.encode(reader.network, ids)
    places = torch.tensor([t.slots for t in templates], device=ids.device)
    calls = []

    def put(module: Any, args: Any, found: torch.Tensor) -> torch.Tensor:
        calls.append(module)
        rows = torch.arange(len(places), device=found.device)[:, None].expand_as(places)
        return found.index_put((rows, places), vectors.to(found).expand(len(places), -1, -1))

    handle = reader.embeddings.register_forward_hook(put)
    try:
        encoded = reader.text.encode(reader.network, ids)
    finally:
        handle.remove()
    assert len(calls) == 1, f"{reader.text.name} passed its embeddings by"
    return encoded


@torch.no_grad()
def draw(
    pipeline: Any, contexts: Text, seeds: Sequence[int], steps: int, guidance: float, output_type: str = "pil", batch_size: int = 32
) -> Any:
    """Pictures (or latents `[B, C, h, w]`) from contexts, one seed each; the empty prompt is the other half of guidance."""
    found: list[Any] = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        noise = initial_latents(pipeline, seeds[part])
        found.extend(denoise(pipeline, None, noise, seeds[part], steps, guidance, output_type, **contexts.of(part).named()))
    return torch.stack(found) if output_type == "latent" else found
