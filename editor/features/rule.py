"""The selection rule as the user writes it. Needs no torch: settings are checked before torch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..common.errors import SaeuronError


@dataclass(frozen=True)
class Rule:
    """A selection rule: `percentile:99.999` or `count:3`."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `percentile:P` (0 < P < 100) or `count:N` (N ≥ 1).

        Raises:
            SaeuronError: anything else.
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind == "percentile":
            if not 0 < value < 100:
                raise SaeuronError(f"selection '{text}': a percentile lies between 0 and 100, both excluded (e.g. percentile:99.999)")
        elif kind == "count":
            if not value >= 1 or not value.is_integer():
                raise SaeuronError(f"selection '{text}': a count is a whole number of at least 1 (e.g. count:3)")
        else:
            raise SaeuronError(f"selection '{text}': expected percentile:P or count:N")
        return cls(kind, value)

    def widened(self, factor: float) -> Rule:
        """A rule that takes `factor` (≥ 1) times as many features, as far as whole numbers and percentiles above 0 go."""
        if self.kind == "count":
            return Rule(self.kind, float(max(1, round(self.value * factor))))
        # Rounded to ten digits: 100 - 0.001 is no round number in binary.
        return Rule(self.kind, round(max(100 - (100 - self.value) * factor, 1e-9), 10))

    def __str__(self) -> str:
        # All digits: a rounded percentile chooses other features when it is read again.
        return f"{self.kind}:{int(self.value) if float(self.value).is_integer() else self.value!r}"
