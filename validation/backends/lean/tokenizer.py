"""CLIP's tokenizer by the `tokenizers` library alone, with the ids that transformers' `CLIPTokenizer` gives.

Source: transformers/models/clip/tokenization_clip.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ....editor.common.errors import SaeuronError, first_line, panics_as_errors
from ....editor.common.files import read_json

_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_END = "<|endoftext|>"
_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END}
_LONGEST = 4096
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Texts → ids.

    Args:
        folder: holds `tokenizer_config.json` and `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        SaeuronError: a file is missing or damaged, or the tokenizer is of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = read_json(folder / "tokenizer_config.json")
        if config.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
            raise SaeuronError(f"'{folder}' holds a {config['tokenizer_class']}; without transformers only CLIP's tokenizer can be run")
        length = config.get("model_max_length")
        if not isinstance(length, int) or not 2 <= length <= _LONGEST:
            raise SaeuronError(f"'{folder}': 'model_max_length' is {length!r}, which is no number of tokens")
        self.length: int = length
        """tokens of every row, start and end included"""
        if config.get("split_special_tokens"):
            raise SaeuronError(f"'{folder}': 'split_special_tokens' can't be run without transformers")
        for key in ("padding_side", "truncation_side"):
            if config.get(key, "right") not in ("left", "right"):
                raise SaeuronError(f"'{folder}': '{key}' is neither left nor right")
        named = {key: _content(config.get(key), default) for key, default in _TOKENS.items()}
        self._tokenizer = _open(folder, named)
        pad = self._tokenizer.token_to_id(named["pad_token"])
        if pad is None:
            raise SaeuronError(f"'{folder}': the padding token {named['pad_token']!r} is not in the vocabulary")
        _refuse_inversions(folder, self._tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad, self._left = pad, config.get("padding_side", "right") == "left"
        self._cut = {"max_length": self.length, "direction": config.get("truncation_side", "right")}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int64 `[B, length]`, cut and padded."""
        self._tokenizer.enable_truncation(**self._cut)
        rows = self._encode(texts)
        found = np.full((len(rows), self.length), self._pad, np.int64)
        for row, ids in zip(found, rows, strict=True):
            row[slice(self.length - len(ids), None) if self._left else slice(len(ids))] = ids
        return found

    def tokens(self, text: str) -> int:
        """How many a text has, start and end included; more than `length` are cut off."""
        self._tokenizer.no_truncation()
        return len(self._encode([text])[0])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            with panics_as_errors():
                return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        except Exception as error:  # the library raises plain exceptions
            raise SaeuronError(f"'{self._folder}' holds a tokenizer that can't be run: {first_line(error, 200)}") from None


def _content(value: Any, default: str) -> str:
    """A special token as configs write it: a text, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _open(folder: Path, named: dict[str, str]) -> Tokenizer:
    try:
        with panics_as_errors():
            if (folder / "tokenizer.json").is_file():
                return Tokenizer.from_file(str(folder / "tokenizer.json"))
            for name in ("vocab.json", "merges.txt"):
                if not (folder / name).is_file():
                    raise SaeuronError(f"'{folder}' holds neither tokenizer.json nor {name}")
            return _from_lists(folder, named)
    except SaeuronError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise SaeuronError(f"'{folder}' holds no tokenizer that can be read: {first_line(error, 200)}") from None


def _from_lists(folder: Path, named: dict[str, str]) -> Tokenizer:
    """CLIP's tokenizer of a vocabulary and merges, as transformers builds it."""
    model = models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"), continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False,
        unk_token=named["unk_token"],
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
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
