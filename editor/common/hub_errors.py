"""What the Hub's client raises, as a reason in plain words. Known by name, since the classes differ between its versions."""

from __future__ import annotations

import errno

from .errors import first_line

_UNREACHABLE = ("ConnectError", "ConnectTimeout", "TimeoutException", "ConnectionError", "ProxyError", "NetworkError")


def hub_reason(error: BaseException) -> str:
    """The reason, without a full stop; what to do after a semicolon."""
    if type(error).__name__ in ("LocalEntryNotFoundError", "IncompleteSnapshotError") and error.__cause__ is not None:
        return hub_reason(error.__cause__)
    kinds = {c.__name__ for c in type(error).__mro__}
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = getattr(error, "server_message", None) or getattr(response, "headers", {}).get("X-Error-Message") or ""
    said = f" ({' '.join(str(said).split())[:160]})" if said else ""
    if "LocalTokenNotFoundError" in kinds:
        return "there is no token; run `hf auth login`, or set HF_TOKEN"
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set, so the Hub is not asked"
    if "GatedRepoError" in kinds:
        return "it is gated, and the token has no access; ask for it on its page on the Hub"
    if "RevisionNotFoundError" in kinds:
        return "it has no such revision"
    if "RepositoryNotFoundError" in kinds:
        return "it doesn't exist, or is private and the token has no access"
    reasons = {
        401: f"the token is not valid{said}; run `hf auth login`, or set HF_TOKEN", 403: f"the token has no permission{said}; it needs write access there",
        409: f"another change is under way there{said}; try again", 412: "it was changed meanwhile; try again", 429: "too many requests; try again later",
    }  # fmt: skip
    if status in reasons:
        return reasons[status]
    if isinstance(status, int) and status >= 500:
        return f"the Hub answers with error {status}; try again later"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        return f"{first_line(error)}; set HF_HOME to a folder that can be written and has room"
    if kinds & set(_UNREACHABLE):
        # Large files go through a store of their own, which a proxy or a mirror may lack.
        other = "; HF_HUB_DISABLE_XET=1 sends large files without Xet" if "xet" in str(error).lower() else ""
        return f"the Hub can't be reached ({first_line(error, 200)}){other}"
    return first_line(error, 200)
