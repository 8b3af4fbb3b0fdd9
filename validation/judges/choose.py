"""Opens judges by the names that a user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...editor.features.prompt_sets import ConceptPrompts
from .judge import Judge, LabelJudge

LABELS = ("demo", "unlearncanvas", "onnx")
"""judges that name an object and a style, from lists of their own"""
WORDS = ("clip", "classifier", "nudenet")
"""judges that are told by a concept's words what to look for"""
KNOWN = (*LABELS, *WORDS)
_TAKES = {"unlearncanvas": "DIR", "onnx": "DIR", "clip": "DIR|ID", "classifier": "DIR|ID"}


def open_judge(text: str, wanted: Mapping[str, ConceptPrompts] | None = None, device: str = "cpu") -> Judge:
    """Open one judge.

    Args:
        text: `demo`, `unlearncanvas=DIR`, `onnx=DIR`, `clip=DIR|ID`, `classifier=DIR|ID[:A,B]` or `nudenet[=SCORE]`.
        wanted: concepts, with their words, of which it has to see at least one; None: whatever it knows.
        device: torch device.

    Raises:
        SaeuronError: an unknown judge, files that are missing or can't be read, a concept that it can't see.
    """
    name, _, where = text.partition("=")
    if name not in KNOWN:
        raise SaeuronError(unknown("judge", name, KNOWN))
    if name in _TAKES and not where:
        raise SaeuronError(f"judge {name}: say where it lies: {name}={_TAKES[name]}")
    if name in LABELS:
        judge: Judge = open_labels(text)
    elif wanted is None:
        raise SaeuronError(f"judge {name} looks for a concept by its words, and here are none; take one of {', '.join(LABELS)}")
    else:
        judge = _by_words(name, where, wanted, device)
    if wanted and not set(wanted) & set(judge.concepts):
        raise _blind(next(iter(wanted)), [judge], [text])
    return judge


def open_labels(text: str) -> LabelJudge:
    """A judge of `LABELS`; raises `SaeuronError` for another one."""
    from .demo import DemoJudge
    from .onnx_graphs import OnnxJudge
    from .unlearncanvas import UnlearnCanvasJudge

    name, _, where = text.partition("=")
    kinds: dict[str, type[DemoJudge | OnnxJudge | UnlearnCanvasJudge]] = {
        "demo": DemoJudge,
        "unlearncanvas": UnlearnCanvasJudge,
        "onnx": OnnxJudge,
    }
    if name not in kinds:
        raise SaeuronError(unknown("judge", name, LABELS, "of objects and styles"))
    return kinds[name](where)


def open_judges(texts: Sequence[str], wanted: Mapping[str, ConceptPrompts], device: str = "cpu") -> list[Judge]:
    """Several judges, each once, of which at least one sees each concept; arguments as for `open_judge`."""
    if twice := [t for t in dict.fromkeys(texts) if texts.count(t) > 1]:
        raise SaeuronError(f"judge '{twice[0]}' is named twice")
    judges = [open_judge(text, wanted, device) for text in texts]
    if len({judge.name for judge in judges}) < len(judges):
        raise SaeuronError(f"two of the judges {', '.join(texts)} have one name, by which figures are told apart; rename a folder")
    for concept in wanted:
        if not any(concept in judge.concepts for judge in judges):
            raise _blind(concept, judges, texts)
    return judges


def _blind(concept: str, judges: Sequence[Judge], texts: Sequence[str]) -> SaeuronError:
    known = list(dict.fromkeys(name for judge in judges for name in judge.concepts))
    text = unknown("concept", concept, known, f"to the judge '{', '.join(texts)}'")
    return SaeuronError(f"{text}; --judge names another")


def _by_words(name: str, where: str, wanted: Mapping[str, ConceptPrompts], device: str) -> Judge:
    if name == "clip":
        from .clip import ClipJudge

        return ClipJudge(where, wanted, device)
    if name == "classifier":
        from .classifier import ClassifierJudge

        return ClassifierJudge(where, wanted, device)
    from .nudenet import NudeNetJudge

    return NudeNetJudge(where, wanted, device)
