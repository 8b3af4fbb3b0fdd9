"""Under which licence an artifact may be published: its base model's, as the base's card says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...editor import demo
from ...editor.common.errors import SaeuronError
from ...validation.artifact.manifest import Licence

_NO_DERIVATIVES = re.compile(r"(?<![a-z])(nd(?![a-z])|no[-_ ]?deriv)", re.IGNORECASE)
_NONE = ("unknown", "")
"""what a card says that says nothing"""


def of_model(folder: Path) -> Licence | None:
    """The licence that a model's folder tells of in its card; None if it tells none."""
    from huggingface_hub.repocard import metadata_load

    if folder in demo.MODELS.values():
        return Licence(id="apache-2.0", source="saeuron-export, whose demo it is")
    if not (folder / "README.md").is_file():
        return None
    try:
        return of_metadata(metadata_load(folder / "README.md") or {})
    except Exception:  # a card is free text; what can't be read tells nothing
        return None


def of_metadata(metadata: Any) -> Licence | None:
    """The licence in the YAML head of a card."""
    said = metadata.get("license")
    ids = [i.strip().lower() if isinstance(i, str) else "" for i in (said if isinstance(said, list) else [said])]
    if not ids or any(i in _NONE for i in ids):
        return None
    name, link = (metadata.get(key) if isinstance(metadata.get(key), str) else None for key in ("license_name", "license_link"))
    return Licence(id=", ".join(ids), name=name, link=link, source="the base model's card")


def settle(known: Licence | None, stated: str | None, base: str, public: bool) -> Licence:
    """The licence to publish under.

    Args:
        known: the base model's.
        stated: `--license`.
        base: name of the base model.
        public: whether everybody will see it.

    Raises:
        SaeuronError: unknown, two that disagree, or one that lets nobody share what is derived.
    """
    wanted = stated.strip().lower() if stated else None
    if wanted in ("other", *_NONE) and not (known and known.id == wanted):
        raise SaeuronError(f"--license {wanted} says nothing; give an identifier of the Hub's list, e.g. creativeml-openrail-m")
    if known and wanted and known.id != wanted:
        raise SaeuronError(
            f"licence conflict: --license says '{wanted}', but it is '{known.id}' ({known.source}); an edited model stays under the licence of its base, so leave --license out"
        )
    found = known or (Licence(id=wanted, source="stated by the publisher") if wanted else None)
    if found is None:
        raise SaeuronError(f"the licence of '{base}' is not known, and an edited model stays under it; state it with --license ID")
    if public and any(_NO_DERIVATIVES.search(part) for part in (found.id, found.name, found.link) if part):
        raise SaeuronError(
            f"licence conflict: '{found.name or found.id}' of '{base}' lets nobody share derived works, so it can't be published with --public"
        )
    return found
