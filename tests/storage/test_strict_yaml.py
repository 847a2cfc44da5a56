"""YAML means what a person takes it to mean, and comes back as it was written."""

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.storage.strict_yaml import dump_yaml, parse_yaml

MEANT: dict[str, object] = {
    "3e-4": 3e-4,
    "1E5": 1e5,
    "+1.5": 1.5,
    ".5": 0.5,
    "-.inf": -math.inf,
    "010": 10,
    "-7": -7,
    "no": "no",
    "on": "on",
    "1_000": "1_000",
    "0x10": "0x10",
    "1:30": "1:30",
    "2030-01-01": "2030-01-01",
    "true": True,
    "~": None,
    "": None,
    "'3e-4'": "3e-4",
    "245.37B": "245.37B",
    "<<": "<<",
}


@pytest.mark.parametrize("text", MEANT)
def test_scalars_are_what_they_look_like(text: str) -> None:
    found = parse_yaml(f"key: {text}".encode(), "file")
    assert found == {"key": MEANT[text]}
    assert isinstance(found, dict)
    assert type(found["key"]) is type(MEANT[text])


def test_a_key_stands_once_where_it_was_written() -> None:
    """What merges put beside it is no second one."""
    merged = b"a: &a {x: 1}\nb: {c: &c {<<: *a, x: 2}}\nd: {<<: *c, y: 3}"
    found = parse_yaml(merged, "file")
    assert found == {"a": {"x": 1}, "b": {"c": {"x": 2}}, "d": {"x": 2, "y": 3}}
    with pytest.raises(UsageError, match="the key 'x' stands twice"):
        parse_yaml(merged.replace(b"y: 3", b"x: 3, x: 4"), "file")


def test_yaml_1_1_would_not_do() -> None:
    """The negative control: what PyYAML makes of the same."""
    assert yaml.safe_load("[3e-4, 010, no]") == ["3e-4", 8, False]


TEXTS = st.sampled_from([*MEANT, "null", "NaN", ".nan", "1e", "é", "a: b", "#", "- x", "\x1b"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
@example("\x85")
@example(["a\u2028b", {"\ufeff": "\u2029"}])
def test_what_is_written_is_read(value: object) -> None:
    found = parse_yaml(dump_yaml(value).encode(), "file")
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "{a: 1, b: {c: 2, c: 2}}", "1: x\n1: y", "x: &b {k: 1}\nk: 2\nk: 3"]
)
def test_a_key_stands_once(text: str) -> None:
    with pytest.raises(UsageError, match=r"file: is not YAML that can be read: the key .* twice"):
        parse_yaml(text.encode(), "file")


def test_a_mapping_may_be_merged_into_another() -> None:
    text = b"base: &base {lr: 1, steps: 2}\nstage: {<<: *base, steps: 3}"
    assert parse_yaml(text, "file") == {
        "base": {"lr": 1, "steps": 2},
        "stage": {"lr": 1, "steps": 3},
    }


def repeated(form: str, levels: int) -> bytes:
    """YAML in which each level refers to the one before twice."""
    lines = [form.format(own=n, before=n - 1) for n in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *lines]).encode()


FORMS = {
    "mapping": "a{own}: &a{own} {{p: *a{before}, q: *a{before}}}",
    "list": "a{own}: &a{own} [*a{before}, *a{before}]",
    "merge": "a{own}: &a{own} {{<<: [*a{before}, *a{before}], y{own}: 1}}",
    "key": "? &a{own} {{<<: [*a{before}, *a{before}]}}\n: 1",
}


@pytest.mark.parametrize("form", FORMS)
def test_what_grows_by_reference_is_refused_before_it_is_made(form: str) -> None:
    with pytest.raises(UsageError, match=r"more than \d+ values, counted as often as they are"):
        parse_yaml(repeated(FORMS[form], 40), "file")


def test_references_are_honest_in_small_numbers() -> None:
    assert parse_yaml(repeated(FORMS["mapping"], 3), "file") == {
        "a0": {"x": 1},
        "a1": {"p": {"x": 1}, "q": {"x": 1}},
        "a2": {name: {"p": {"x": 1}, "q": {"x": 1}} for name in "pq"},
    }


def test_what_holds_itself_is_refused() -> None:
    for text in ("a: &a [*a]", "a: &a {b: {c: *a}}"):
        with pytest.raises(UsageError, match="a value that holds itself"):
            parse_yaml(text.encode(), "file")
