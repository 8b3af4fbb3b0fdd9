"""CLIP's, T5's and Gemma's tokenizers by the `tokenizers` library alone, with the ids that transformers' `CLIPTokenizer` and `T5Tokenizer` give.

Sources: transformers/models/clip/tokenization_clip.py and t5/tokenization_t5.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ....editor.common.errors import SaeuronError, first_line, panics_as_errors
from ....editor.common.files import read_json
from ....editor.denoisers.families import TextEncoder

_END = "<|endoftext|>"
_LONGEST = 4096
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""what CLIP takes for a word"""


class TextTokenizer:
    """Texts → ids.

    Args:
        folder: holds `tokenizer_config.json` and `tokenizer.json`; of CLIP also `vocab.json` and `merges.txt` will do.
        length: tokens of every row, start and end included; default: as many as the config says.
        side: on which rows are padded; default: as the config says.

    Raises:
        SaeuronError: a file is missing or damaged, or the tokenizer is of another kind.
    """

    noun: ClassVar[str]
    """whose it is"""
    classes: ClassVar[tuple[str, ...]]
    """its names in transformers; the first is taken where the config has none"""
    special: ClassVar[dict[str, str]]
    """special tokens that are taken where the config has none"""

    def __init__(self, folder: Path, length: int | None = None, side: str | None = None) -> None:
        self._folder = folder
        config = read_json(folder / "tokenizer_config.json")
        if (cls := config.get("tokenizer_class", self.classes[0])) not in self.classes:
            raise SaeuronError(f"'{folder}' holds a {cls}; without transformers only {self.noun}'s tokenizer can be run there")
        found = config.get("model_max_length") if length is None else length
        if not isinstance(found, int) or not 2 <= found <= _LONGEST:
            raise SaeuronError(f"'{folder}': 'model_max_length' is {found!r}, which is no number of tokens")
        self.length: int = found
        """tokens of every row, start and end included"""
        if config.get("split_special_tokens"):
            raise SaeuronError(f"'{folder}': 'split_special_tokens' can't be run without transformers")
        for key in ("padding_side", "truncation_side"):
            if config.get(key, "right") not in ("left", "right"):
                raise SaeuronError(f"'{folder}': '{key}' is neither left nor right")
        named = {key: _content(config.get(key), default) for key, default in self.special.items()}
        self._tokenizer = self._open(named)
        pad = self._tokenizer.token_to_id(named["pad_token"])
        if pad is None:
            raise SaeuronError(f"'{folder}': the padding token {named['pad_token']!r} is not in the vocabulary")
        _refuse_inversions(folder, self._tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad, self._left = pad, (side or config.get("padding_side", "right")) == "left"
        self._cut = {"max_length": self.length, "direction": config.get("truncation_side", "right")}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int64 `[B, length]`, cut and padded."""
        return self.rows(texts)[0]

    def rows(self, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and 1 where one isn't padding, both int64 `[B, length]`; default: `self.length`."""
        length = self.length if length is None else length
        self._tokenizer.enable_truncation(**{**self._cut, "max_length": length})
        rows = self._encode(texts)
        found, mask = np.full((len(rows), length), self._pad, np.int64), np.zeros((len(rows), length), np.int64)
        for row, own, ids in zip(found, mask, rows, strict=True):
            place = slice(length - len(ids), None) if self._left else slice(len(ids))
            row[place], own[place] = ids, 1
        return found, mask

    def tokens(self, text: str) -> int:
        """How many a text has, start and end included; more than `length` are cut off."""
        self._tokenizer.no_truncation()
        return len(self._encode([text])[0])

    @property
    def content(self) -> dict[str, Any]:
        """What a `tokenizer.json` would say of it."""
        return dict(json.loads(self._tokenizer.to_str()))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            with panics_as_errors():
                return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        except Exception as error:  # the library raises plain exceptions
            raise SaeuronError(f"'{self._folder}' holds a tokenizer that can't be run: {first_line(error, 200)}") from None

    def _open(self, named: dict[str, str]) -> Tokenizer:
        folder = self._folder
        try:
            with panics_as_errors():
                if (folder / "tokenizer.json").is_file():
                    return Tokenizer.from_file(str(folder / "tokenizer.json"))
                return self._from_lists(named)
        except SaeuronError:
            raise
        except Exception as error:  # the library raises plain exceptions
            raise SaeuronError(f"'{folder}' holds no tokenizer that can be read: {first_line(error, 200)}") from None

    def _from_lists(self, named: dict[str, str]) -> Tokenizer:
        """The tokenizer without `tokenizer.json`."""
        raise SaeuronError(
            f"'{self._folder}' holds no tokenizer.json; open it with transformers once and save it again (save_pretrained), or export anew"
        )


class ClipTokenizer(TextTokenizer):
    """CLIP's: byte pairs of lower-case words."""

    noun, classes = "CLIP", ("CLIPTokenizer", "CLIPTokenizerFast")
    special: ClassVar = {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END}

    def _from_lists(self, named: dict[str, str]) -> Tokenizer:
        for name in ("vocab.json", "merges.txt"):
            if not (self._folder / name).is_file():
                raise SaeuronError(f"'{self._folder}' holds neither tokenizer.json nor {name}")
        return _from_lists(self._folder, named)


class T5Tokenizer(TextTokenizer):
    """T5's: SentencePiece's pieces, as `tokenizer.json` has them. There is no start token."""

    noun, classes = "T5", ("T5Tokenizer", "T5TokenizerFast")
    special: ClassVar = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class GemmaTokenizer(TextTokenizer):
    """Gemma's: byte pairs, as `tokenizer.json` has them. There is no end token."""

    noun, classes = "Gemma", ("GemmaTokenizer", "GemmaTokenizerFast")
    special: ClassVar = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


_BY_ENCODER: dict[str, type[TextTokenizer]] = {
    "CLIPTextModel": ClipTokenizer, "CLIPTextModelWithProjection": ClipTokenizer, "T5EncoderModel": T5Tokenizer,
    "Gemma2Model": GemmaTokenizer,
}  # fmt: skip


def tokenizer_for(root: Path, text: TextEncoder) -> TextTokenizer:
    """The tokenizer of one of a pipeline's text encoders.

    Args:
        root: folder of the pipeline.
        text: whose ids it gives.

    Raises:
        SaeuronError: see `TextTokenizer`; or none of this kind is known here.
    """
    if text.cls not in _BY_ENCODER:
        raise SaeuronError(f"the tokenizer of a {text.cls} needs transformers")
    return _BY_ENCODER[text.cls](root / text.tokenizer, None if text.length is None else text.tokens_in(root), text.side)


def _content(value: Any, default: str) -> str:
    """A special token as configs write it: a text, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _from_lists(folder: Path, named: dict[str, str]) -> Tokenizer:
    """CLIP's tokenizer of a vocabulary and merges, as transformers builds it."""
    model = models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"), continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False,
        unk_token=named["unk_token"],
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(named.values())])
    ids = tokenizer.get_vocab()
    end, start = ((named[key], ids[named[key]]) for key in ("eos_token", "bos_token"))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _refuse_inversions(folder: Path, tokenizer: Tokenizer) -> None:
    """Textual inversions of several vectors: diffusers writes `<cat> <cat>_1 …` for `<cat>`, and we don't."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in sorted(added):
        if f"{token}_1" in added:
            raise SaeuronError(f"'{folder}': the token {token!r} stands for several (a textual inversion), which needs diffusers")
