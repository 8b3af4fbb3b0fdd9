"""The multipliers that a feature may have. Needs no torch: options are checked before torch is imported."""

from __future__ import annotations

from ..common.errors import SaeuronError

BY_HAND = "by hand"
"""status of settings that name features themselves, where others are tuned or untuned"""


LARGEST = 3e38
"""tables are float32; what is beyond would become infinite in them"""


def check_gain(feature: int, gain: float, allow_amplify: bool) -> None:
    """Raise unless `gain` is a number that may multiply a feature."""
    if not abs(gain) < LARGEST:
        raise SaeuronError(f"feature {feature}: {gain:g} is no finite number of float32")
    if gain == 1:
        raise SaeuronError(f"feature {feature}: multiplying by 1 changes nothing")
    if gain > 1 and not allow_amplify:
        raise SaeuronError(
            f"feature {feature}: a number above 1 ({gain:g}) strengthens the feature; use one below 1, or --allow-amplify if you mean it"
        )
