"""What a report shows of single features."""

from __future__ import annotations

from typing import Any

from .features import Features, Seen
from .figures import percent

_WIDTH, _HEIGHT = 160.0, 36.0


def feature_section(features: Features | None, sensitive: bool) -> dict[str, Any] | None:
    """Each feature's figures and strongest pictures; None where no features were given."""
    if features is None:
        return None
    return {"rows": [_row(seen) for seen in features.seen], "sensitive": sensitive, "model": features.model, "sampling": features.sampling}


def _row(seen: Seen) -> dict[str, Any]:
    of, shares = seen.of, seen.of.active_tokens
    at = max(range(len(shares)), key=shares.__getitem__)
    return {
        "feature": of.feature, "hookpoint": of.hookpoint, "concepts": ", ".join(seen.concepts), "share": percent(sum(shares) / len(shares)),
        "most": percent(shares[at]), "most_at": f"{of.timesteps[at]:g}", "active_in": of.active_in, "pictures": of.pictures, "line": _line(shares),
        "ends": [f"{t:g}" for t in (of.timesteps[0], of.timesteps[-1])],
        "top": [{"prompt": s.of.prompt, "seed": s.of.seed, "picture": s.picture, "map": s.map, "height": s.picture.shape[0], "width": s.picture.shape[1]} for s in seen.top],
    }  # fmt: skip


def _line(shares: list[float]) -> str:
    """`points` of a polyline: the share of tokens over timesteps, in denoising's order, up to its own largest."""
    most, last = max(shares) or 1.0, max(len(shares) - 1, 1)
    return " ".join(f"{_WIDTH * i / last:.1f},{2 + (_HEIGHT - 4) * (1 - s / most):.1f}" for i, s in enumerate(shares))
