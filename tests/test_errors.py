"""What is wrong is data: what was found and wanted are attributes, and not only sentences."""

import pickle
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field, TypeAdapter, ValidationError

from flmgrow.errors import BadCheckpointError, FlmgrowError, UsageError
from flmgrow.formats.dcp.tiling import tiling_fault
from flmgrow.model.checks import check_whole
from flmgrow.storage.failure import described, raised
from flmgrow.storage.validation import WANTED, problems
from flmgrow.text import (
    COMMAND_LINE,
    Found,
    Setting,
    Text,
    Wanted,
    from_data,
    to_data,
    unlike,
)
from flmgrow.trainer.stage.keys import STAGE_FILE


def test_an_error_has_what_was_found() -> None:
    error = UsageError(Text(Setting("tp"), " is ", Found(3)), "hint", "a file", wanted=2)
    assert (error.found, error.wanted, error.field) == ("3", "2", "tp")
    assert (error.what, error.where, error.hint) == ("tp is 3", ("a file",), "hint")
    assert str(error) == "a file: tp is 3, wanted 2"


def test_what_was_wanted_may_end_the_sentence() -> None:
    error = BadCheckpointError(unlike("size", 3, "less"))
    assert (error.what, error.found, error.wanted) == ("size is 3", "3", "less")
    assert str(error) == "size is 3, wanted less"
    two = Text("; ").join([unlike("a", 1, 2), unlike("b", 3, 4)])
    assert str(BadCheckpointError(two)) == "a is 1, wanted 2; b is 3, wanted 4"
    assert (BadCheckpointError(two).found, BadCheckpointError(two).wanted) == ("1, 3", "4")


def changes(error: FlmgrowError) -> Iterator[FlmgrowError]:
    """An error as it comes from elsewhere, or is told in other words."""
    yield error.at("outside")
    yield error.in_words(STAGE_FILE)
    yield error.in_words(COMMAND_LINE).at("outside").with_more_hint("more")
    yield BadCheckpointError.of(error.in_words(STAGE_FILE))
    yield pickle.loads(pickle.dumps(error))
    yield raised(described(error, 1))


def test_a_value_is_told_as_a_formatted_string_tells_it() -> None:
    value = np.float32(0.1)
    assert str(unlike("a", value, value)) == f"a is {value}, wanted {value}"
    assert from_data(to_data(unlike("a", value, 2))) == unlike("a", value, 2)


def test_an_error_keeps_what_was_found() -> None:
    error = UsageError(Text(Setting("tp"), " is ", Found(3)), "hint", wanted=2)
    for other in changes(error):
        assert (other.found, other.wanted, other.field) == ("3", "2", "tp")


def test_where_no_value_is_told_none_is_found() -> None:
    error = UsageError("does not exist")
    assert (error.found, error.wanted, error.field) == ("", "", "")


def test_what_was_found_cannot_drive_a_terminal() -> None:
    assert UsageError(Text("is ", Found("\x1b[2J"))).found == "\\x1b[2J"
    assert UsageError(Text("is ", Found("hf://u:secret@host"))).found == "hf://***@host"


def test_checks_and_faults_say_what_they_found() -> None:
    with pytest.raises(UsageError) as caught:
        check_whole("a size", 0)
    assert (caught.value.found, caught.value.wanted) == ("0", "at least 1")
    fault = tiling_fault((4,), [((0,), (3,))])
    assert fault is not None
    error = BadCheckpointError(fault)
    assert error.found == "chunks of 3 elements together"
    assert error.wanted == "4: there is a hole"


class Kind(Enum):
    """A choice, as pydantic checks it."""

    A = "a"
    B = "b"


WRONG: list[tuple[Any, object]] = [
    (None, 3), (Annotated[int, Field(gt=0)], 0), (Annotated[float, Field(gt=0)], -1.0),
    (Annotated[int, Field(ge=1)], 0), (Annotated[float, Field(lt=0.5)], 1.0),
    (Annotated[int, Field(le=1 << 60)], 1 << 61), (Annotated[float, Field(le=1e9)], 1e10),
    (Annotated[float, Field(allow_inf_nan=False)], float("inf")), (Literal["a", "b"], "c"),
    (Kind, "c"), (tuple[int, ...], 3), (bool, []), (bool, "x"), (int, []), (int, "x"), (int, 1.5),
    (float, []), (float, "x"),
]  # fmt: skip
OUR_OWN = {"model_type", "dict_type", "list_type", "path_type", "string_type"}


def first_error(kind: Any, value: object) -> Any:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return caught.value.errors()[0]


def test_what_pydantic_wants_is_said_from_its_data() -> None:
    """In the words that it has itself, but for what people call otherwise."""
    errors = [first_error(kind, value) for kind, value in WRONG]
    assert {error["type"] for error in errors} == WANTED.keys() - OUR_OWN
    for error in errors:
        told = UsageError(problems([error]))
        assert f"Input should be {told.wanted}" == error["msg"]
        assert told.found == ("nothing" if error["input"] is None else repr(error["input"]))


def test_what_pydantic_wants_in_other_words_is_told_whole() -> None:
    told = UsageError(problems([first_error(Annotated[list[int], Field(min_length=1)], [])]))
    assert (
        str(told) == "the whole: found []: list should have at least 1 item after validation, not 0"
    )
    assert (told.found, told.wanted) == ("[]", "")


def test_our_own_findings_keep_their_parts() -> None:
    error = ValueError(Text("found ", Found("x"), Wanted("an amount")))
    finding = {
        "type": "value_error",
        "loc": ("a",),
        "msg": "",
        "input": "x",
        "ctx": {"error": error},
    }
    told = UsageError(problems([finding]))
    assert (str(told), told.found, told.wanted) == (
        "a: found x, wanted an amount",
        "x",
        "an amount",
    )
