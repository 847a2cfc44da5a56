"""Files in another encoding are told as such, and never to be copied again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.storage.encodings import encoding_hint
from flmgrow.storage.strict_json import parse_object
from flmgrow.storage.strict_yaml import parse_yaml

OTHERS = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig")


@given(st.dictionaries(st.text(), st.text() | st.integers()), st.booleans())
def test_json_in_another_encoding_is_known_by_its_beginning(
    data: dict[str, str | int], plain: bool
) -> None:
    text = json.dumps(data, ensure_ascii=plain)
    assert all(encoding_hint(text.encode(other)) for other in OTHERS)
    assert encoding_hint(text.encode("utf-8")) == ""


@pytest.mark.parametrize("encoding", OTHERS)
def test_the_hint_says_what_to_write(encoding: str) -> None:
    with pytest.raises(BadCheckpointError, match=r"config.json: is not JSON") as error:
        parse_object('{"hidden_size": 8}'.encode(encoding), "config.json")
    assert "UTF-8" in error.value.hint
    assert "copy" not in error.value.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_stage_file_in_utf_16(encoding: str) -> None:
    with pytest.raises(UsageError, match="is not YAML") as error:
        parse_yaml("model: {}\n".encode(encoding), "stage.yaml")
    assert "UTF-16" in error.value.hint


def test_yaml_may_begin_with_a_mark() -> None:
    assert parse_yaml("model: {}\n".encode("utf-8-sig"), "stage.yaml") == {"model": {}}
