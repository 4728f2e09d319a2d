"""Fields of settings: described once, checked alike wherever their values come from."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.options import (
    Option,
    Settings,
    build,
    check_options,
    default_of,
    hints_of,
    known_values,
    option,
    option_of,
    options_of,
    own_keys,
    read_value,
    sections_of,
)


@dataclass(frozen=True)
class Inner(Settings):
    size: int = option(8, at_least=1, help="Size.")
    share: float = option(0.5, above=0, below=1, help="Share.")


@dataclass(frozen=True)
class Outer(Settings):
    command = "outer"

    name: str | None = option(None, help="Name.")
    kind: str = option("a", choices=("a", "b"), help="Kind.")
    rates: tuple[float, ...] = option((0.1,), above=0, is_filled=True, is_distinct=True, help="Rates.")
    inner: Inner = option(default_factory=Inner, help="Inner.")
    methods: dict[str, dict[str, Any]] = option(default_factory=dict, help="Methods.")
    training_arguments: dict[str, Any] = option(default_factory=dict, help="Arguments.")


@dataclass(frozen=True)
class Around(Settings):
    outer: Outer = option(default_factory=Outer, is_inline=True, help="Outer.")
    extra: bool = option(False, help="Extra.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "name is 3; it must be text or null"),
        ({"kind": "c"}, "kind is 'c'; choose one of: a, b"),
        ({"rates": [0.1, "x"]}, r"rates\[1\] is 'x'; it must be a number"),
        ({"rates": []}, "rates is empty; give at least one"),
        ({"rates": [1, 1.0]}, r"rates is \[1, 1.0\]; name each once"),
        ({"rates": [0.1, -1]}, "rates is -1; it must be above 0"),
        ({"rates": {"a": 1}}, "rates is .*; it must be a list"),
        ({"rates": True}, r"rates\[0\] is True; it must be a number"),
        ({"inner": {"size": 0}}, "size is 0; it must be at least 1"),
        ({"inner": {"sise": 1}}, "unknown key 'sise' in inner; did you mean 'size'"),
        ({"inner": {"zzz": 1}}, "unknown key 'zzz' in inner; known keys: share, size"),
        ({"inner": [1]}, r"inner is \[1\]; it must be a mapping of keys to values"),
        ({"inner": {"share": 1}}, "share is 1; it must be between 0 and 1"),
        ({"inner": {"share": math.nan}}, "share is nan; it must be between 0 and 1"),
        ({"methods": {"SPOS": 3}}, "methods.SPOS is 3; it must be a mapping"),
        ({"training_arguments": {"max_step": 3}}, "unknown key 'max_step' in training_arguments; did you mean"),
        ({"training_arguments": {"max_steps": "few"}}, "max_steps is 'few'; it must be a whole number"),
        ({"training_arguments": {"zzzzz": 3}}, "none of the .* keys is similar; transformers documents them"),
        (
            {"training_arguments": {"gradient_accumulation_steps": 0}},
            "gradient_accumulation_steps is 0; it must be at",
        ),
        ({"training_arguments": {"output_dir": "x"}}, "unknown key 'output_dir'"),
    ],
)
def test_what_is_wrong_is_named_when_settings_are_made(values, message):
    with pytest.raises(ValueError, match=message):
        Outer(**values)
    with pytest.raises(ValueError, match=message):
        build(Outer, values, "recipe")
    with pytest.raises(ValueError, match=message):
        replace(Outer(), **values)


def test_values_become_those_of_their_fields():
    made = Outer(rates=3, inner={"size": 4.0}, methods={1: {"sampler": "uniform"}}, training_arguments=None)
    assert made.rates == (3,)
    assert made.inner == Inner(size=4)
    assert type(made.inner.size) is int
    assert made.methods == {"1": {"sampler": "uniform"}}
    assert made.training_arguments == {}
    # A whole number is a number, and one setting with the float that it equals.
    assert [type(rate) for rate in Outer(rates=[1, 2.5]).rates] == [float, float]


def test_numbers_of_numpy_are_numbers():
    made = Inner(size=np.int64(3), share=np.float64(0.25))
    assert (type(made.size), type(made.share)) == (int, float)
    assert Outer(rates=tuple(np.geomspace(1e-5, 1e-3, 3))).rates == pytest.approx((1e-5, 1e-4, 1e-3))
    with pytest.raises(ValueError, match=r"size is 2\.5; it must be a whole number"):
        Inner(size=np.float32(2.5))


def test_a_mapping_that_was_given_is_not_shared():
    given_arguments = {"max_steps": 3.0}
    made = Outer(training_arguments=given_arguments)
    assert made.training_arguments == {"max_steps": 3}
    assert type(made.training_arguments["max_steps"]) is int
    assert type(given_arguments["max_steps"]) is float


def test_inline_sections_give_their_keys():
    assert own_keys(Around) == own_keys(Outer) | {"extra"}
    assert sections_of(Around).keys() == {"inner", "training_arguments"}
    assert sections_of(Inner) == {}
    assert sections_of(Around)["inner"] is Inner


def test_fields_tell_what_is_known_of_them():
    facts = dict((item.name, known) for item, known in options_of(Outer))
    assert facts["kind"].choices == ("a", "b")
    assert [item.name for item, _ in options_of(Outer)] == [item.name for item in fields(Outer)]
    assert [default_of(item) for item in fields(Outer)][:3] == [None, "a", (0.1,)]
    assert default_of(fields(Outer)[3]) == Inner()
    assert hints_of(Outer)["name"] == str | None


def test_fields_that_are_no_options_are_left_alone():
    @dataclass
    class Plain:
        anything: int = "text"
        checked: int = option(1, at_least=1, help="Checked.")

    assert option_of(fields(Plain)[0]) is None
    plain = Plain()
    check_options(plain)
    plain.checked = 0
    with pytest.raises(ValueError, match="checked is 0"):
        check_options(plain)


BOUNDS = {
    "at least 1": {"at_least": 1},
    "above 0": {"above": 0},
    "at most 2.5": {"at_most": 2.5},
    "from 0 to 1": {"at_least": 0, "at_most": 1},
    "from 0 to 4,294,967,295": {"at_least": 0, "at_most": 2**32 - 1},
    "from 0 to below 1": {"at_least": 0, "below": 1},
    "between 0 and 1": {"above": 0, "below": 1},
    "above 0 and at most 1": {"above": 0, "at_most": 1},
    "": {},
}


@pytest.mark.parametrize(("text", "bounds"), BOUNDS.items())
def test_bounds_are_told_in_words(text, bounds):
    assert Option("x", **bounds).bounds == text


@given(
    value=st.floats() | st.integers(-3, 3),
    at_least=st.none() | st.integers(-2, 2),
    above=st.none() | st.integers(-2, 2),
    at_most=st.none() | st.integers(-2, 2),
    below=st.none() | st.integers(-2, 2),
)
def test_bounds_allow_what_they_say(value, at_least, above, at_most, below):
    allowed = math.isfinite(value)
    allowed &= at_least is None or value >= at_least
    allowed &= above is None or value > above
    allowed &= at_most is None or value <= at_most
    allowed &= below is None or value < below
    assert Option("x", at_least=at_least, above=above, at_most=at_most, below=below).allows(value) == allowed


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text() | st.none())
def test_plain_values_have_their_type_or_are_refused(value):
    for hint in (int, float, bool, str, int | None, str | None):
        kinds = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}
        wanted = kinds.get(hint, (int, type(None)) if hint == int | None else (str, type(None)))
        whole = isinstance(value, float) and value.is_integer() and int in wanted
        if type(value) not in wanted and not whole:
            with pytest.raises(ValueError, match=r"x is .*; it must be"):
                read_value("x", value, hint)
            continue
        read = read_value("x", value, hint)
        assert read == value
        assert type(read) in wanted


def test_types_that_no_recipe_spells_are_left_to_their_class():
    class Odd:
        pass

    odd = Odd()
    assert read_value("x", odd, Odd | str) is odd
    assert known_values(Outer, {"name": "n"}, "recipe") == {"name": "n"}
