"""What an intervention can be told beside its strength. Needs no torch: settings are checked before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..common.errors import SaeuronError
from ..common.names import BY_DIRECTION, READ_BY, WIDEST, Gain, Norm


class How(Struct, frozen=True, omit_defaults=True):
    """How a block's tokens are edited. Each field is one intervention's alone, and at its default for the others; `names.READ_BY` says whose."""

    replace_by: Literal["", "nearest", "mean"] = ""
    """of `replace`: what a token becomes"""
    spread: Annotated[int, Meta(ge=0, le=WIDEST)] = 0
    """of `replace`: tokens so many places away from one at which a feature fires, or fewer, along rows and columns, are replaced too"""
    gain: Gain = "mean"
    """of `multiply`: whether a latent is multiplied by its mean, or by what its token's latents say"""
    norm: Norm = "free"
    """of `project` and `probe`: whether a token that is changed is brought back to its norm"""

    def __str__(self) -> str:
        spread = f", spread {self.spread}" if self.spread else ""
        said = (f"by {self.replace_by}{spread}" if self.replace_by else "", "gain by token" if self.gain == "token" else "", "norm kept" if self.norm == "kept" else "")  # fmt: skip
        return ", ".join(filter(None, said))

    @classmethod
    def of(cls, intervention: str, given: Mapping[str, Any]) -> How:
        """Of an intervention at blocks: what it reads of options or keys, all of which are given."""
        return cls(**{key: given[key] for key in told(intervention)})

    def fits(self, directions: bool, residual: str) -> bool:
        """Whether a block can be edited so.

        Args:
            directions: whether directions stand in an SAE's place there.
            residual: of the edit.
        """
        replaces, by_token, kept = bool(self.replace_by), self.gain == "token", self.norm == "kept"
        if replaces + by_token + kept > 1 or (self.spread and not replaces) or ((replaces or kept) and residual != "keep"):
            return False
        return not (replaces or by_token) if directions else not kept


TOLD: tuple[str, ...] = How.__struct_fields__
"""options, and keys of a preset, that say how"""


def told(intervention: str) -> tuple[str, ...]:
    """Those of `TOLD` that an intervention reads."""
    return tuple(key for key in TOLD if intervention in READ_BY[key])


def check_gain_by_token(how: How, gate: str, place: str = "", k: int | None = 1) -> None:
    """Raise `SaeuronError` for a gain by token where the token's k largest latents aren't known.

    Args:
        how: what is asked for.
        gate: of the artifact.
        place: the block.
        k: of the SAE there; None: it has none.
    """
    if how.gain == "token" and gate != "exact":
        raise SaeuronError(f"--gain token goes by all latents that a token keeps, which --gate {gate} doesn't compute; take --gate exact")
    if how.gain == "token" and k is None:
        raise SaeuronError(f"--gain token goes by a token's k largest latents, and the SAE at '{place}' has no k; take --gain mean")


def check_blocks(wishes: Iterable[tuple[str, str, How]], residual: str) -> None:
    """Raise `SaeuronError` for interventions that can't meet at a block, or in an edit of this residual.

    Args:
        wishes: hookpoint, intervention, and how.
        residual: of the edit.
    """
    blocks: dict[str, set[tuple[str, How]]] = {}
    for hookpoint, intervention, how in wishes:
        kind = "directions" if intervention in BY_DIRECTION else intervention if intervention == "replace" else "an SAE's gains"
        blocks.setdefault(hookpoint, set()).add((kind, how))
        if intervention in (*BY_DIRECTION, "replace") and residual != "keep":
            raise SaeuronError(f"intervention {intervention} reconstructs nothing, so it needs residual 'keep', not '{residual}'")
    for hookpoint, held in blocks.items():
        if len(kinds := sorted({kind for kind, _ in held})) > 1:
            raise SaeuronError(
                f"hookpoint '{hookpoint}': {' and '.join(kinds)} can't act at one block; give one of the concepts another 'hookpoint' in a settings file, or export them apart"
            )
        if len(ways := sorted({str(how) or "as ever" for _, how in held})) > 1:
            raise SaeuronError(
                f"hookpoint '{hookpoint}': its concepts are edited {' and '.join(ways)}; one block has one way, so say the same for all, or export them apart"
            )
