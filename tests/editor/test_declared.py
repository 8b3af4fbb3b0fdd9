"""Settings that are declared once: bounds hold however they are made, and what is shared has the same words."""

from dataclasses import dataclass

import pytest

from saeuron.editor.common.declared import Checked, like, numbers, option, words_of
from saeuron.editor.common.errors import SaeuronError


@dataclass(frozen=True)
class Base(Checked):
    """Of several kinds.

    Raises:
        SaeuronError: this section is no field.
    """

    count_of: int | None = option(None, "N", "What", least=1, most=10)
    """How many.  In two
    lines."""
    share: float = option(0.5, above=0, below=1)
    """A share."""
    side: int | None = option(None, least=8, multiple=8)
    """A side."""
    kind: str = option("", name="sort", known=("one", "two"))
    """A kind."""
    seeds: tuple[int, ...] = option((1, 2), joined=True, least=0)
    """Seeds."""
    inner: int = 3


@dataclass(frozen=True)
class Derived(Base):
    """With another default, and a field like another class's."""

    share: float = like(Base, "share", 2.0)
    pieces: int = like(Base, "count_of", 4, most=20)
    """Pieces."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count_of": 0}, "--count-of is 0; it must be 1 to 10"),
        ({"count_of": 10**400}, f"--count-of is {'1' + '0' * 19}…; it must be 1 to 10"),
        ({"share": 0.0}, "--share is 0; it must be above 0 and below 1"),
        ({"share": 1}, "--share is 1; it must be above 0 and below 1"),
        ({"share": float("nan")}, "--share is nan; it must be a finite number"),
        ({"side": 12}, "--side is 12; it must be at least 8 and a multiple of 8"),
        ({"side": "16"}, "--side is '16'; it must be int"),
        ({"count_of": True}, "--count-of is 'True'; it must be int"),
        ({"seeds": None}, "--seeds is None; it must be a list, a tuple or one int"),
        ({"seeds": ["1"]}, "--seeds is '1'; it must be int"),
        ({"side": 0}, "--side is 0; it must be at least 8 and a multiple of 8"),
        ({"kind": "tow"}, "--sort 'tow' is not known; did you mean two? (known: one, two)"),
        ({"seeds": ()}, "--seeds is empty"),
        ({"seeds": [3, -1]}, "--seeds is -1; it must be at least 0"),
        ({"seeds": (3, 4, 3)}, "--seeds: 3 is given twice"),
    ],
)
def test_what_is_out_of_bounds_is_one_line(values, message):
    for settings in (Base, Derived):
        with pytest.raises(SaeuronError) as raised:
            settings(**values)
        assert str(raised.value) == message
    assert "\n" not in message


def test_defaults_and_bounds_themselves_are_allowed():
    assert Base().share == 0.5 and Base(count_of=10, share=0.999, side=16, kind="two", seeds=(0,)).side == 16
    assert Derived().share == 2.0 and Derived(pieces=20).pieces == 20
    with pytest.raises(SaeuronError, match="--pieces is 21; it must be 1 to 20"):
        Derived(pieces=21)


def test_words_follow_what_a_field_is_like():
    assert words_of(Base)["count_of"] == "How many. In two lines." and set(words_of(Base)) == {"count_of", "share", "side", "kind", "seeds"}
    words = words_of(Derived)
    assert words["share"] == "A share." and words["pieces"] == "Pieces." and words["kind"] == "A kind."


def test_lists_of_numbers():
    assert numbers("188, 288,", "--seeds") == (188, 288) and numbers("-1,.5,2e3", "--x", float) == (-1.0, 0.5, 2000.0)
    for text in ("1.5", "x", "١", "1_0"):
        with pytest.raises(SaeuronError, match="is no whole number, e.g. 188,288"):
            numbers(text, "--seeds")
