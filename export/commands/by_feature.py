"""What `steer` and `features` share: how features are named on the command line, and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...editor import demo
from ...editor.common.errors import SaeuronError
from ...editor.common.names import normalise
from ...editor.denoisers.sampling_settings import Sampling
from ..plan.resolve import check_sources

STEPS, GUIDANCE = 50, 7.5


def feature(text: str, hookpoints: Sequence[str], option: str) -> tuple[str, int]:
    """`296` or `HOOKPOINT:296` → hookpoint and number.

    Raises:
        SaeuronError: no whole number, or no telling at which hookpoint.
    """
    head, colon, tail = text.rpartition(":")
    number = tail.strip()
    if not (number.isascii() and number.isdigit() and len(number) < 12):
        raise SaeuronError(f"{option} '{text}': '{number}' is no feature; write its number, e.g. 296 or HOOKPOINT:296")
    if colon:
        at = normalise(head.strip())
        if hookpoints and at not in hookpoints:
            raise SaeuronError(f"{option} '{text}': '{at}' is not among the hookpoints ({', '.join(hookpoints)})")
    elif len(hookpoints) == 1:
        at = hookpoints[0]
    elif hookpoints:
        raise SaeuronError(f"{option} '{text}': there are {len(hookpoints)} hookpoints; write HOOKPOINT:{number}")
    else:
        raise SaeuronError("no hookpoint known: give --hookpoint NAME (SD 1.x: up_blocks.1.attentions.1)")
    return at, int(number)


def sources_of(given: Sequence[str], hookpoints: Sequence[str], model: str) -> dict[str, str]:
    """Hookpoint → SAE folder or Hub id, from --sae.

    Raises:
        SaeuronError: none for a hookpoint, one that isn't used, or a model or SAE that is neither here nor a Hub id.
    """
    from .collect import saes_at

    found = saes_at(list(given), list(hookpoints))
    check_sources([("model", model), *(("SAE", source) for source in found.values())])
    return found


def sampling_of(sampling: Sampling, model: str, steps: int | None, guidance: float | None) -> Sampling:
    """With steps and guidance as asked for, else the model's usual ones."""
    usual = (demo.STEPS, demo.GUIDANCE) if model in demo.MODELS else (STEPS, GUIDANCE)
    return replace(sampling, steps=usual[0] if steps is None else steps, guidance=usual[1] if guidance is None else guidance)
