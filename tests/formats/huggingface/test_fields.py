"""One row says everything of a field of config.json, and no name stands beside its row."""

from collections import Counter
from dataclasses import fields as parts
from pathlib import Path
from typing import Any

import pytest
from hf_folders import EVERY
from quoted_words import quoted

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface import config as config_module
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.fields.flm_rows import FLM_ROWS
from flmgrow.formats.huggingface.fields.gemma_rows import GEMMA_ROWS
from flmgrow.formats.huggingface.fields.granite_rows import GRANITE_ROWS
from flmgrow.formats.huggingface.fields.model_rows import MODEL_ROWS
from flmgrow.formats.huggingface.fields.names import HARMLESS, LABEL_ROWS, ROWS, is_harmless
from flmgrow.formats.huggingface.fields.rotary_rows import ROTARY_ROWS
from flmgrow.formats.huggingface.fields.row import MODEL_TYPES, Field, FieldReader, Use, flag
from flmgrow.formats.huggingface.fields.switch_rows import SWITCH_ROWS
from flmgrow.formats.huggingface.fields.window_rows import WINDOW_ROWS

HOME = Path(config_module.__file__).parent
HOMES = (
    "model_rows", "window_rows", "rotary_rows", "flm_rows", "granite_rows", "gemma_rows",
    "switch_rows", "names",
)  # fmt: skip
ALL = (
    *MODEL_ROWS, *WINDOW_ROWS, *ROTARY_ROWS, *FLM_ROWS, *GRANITE_ROWS, *GEMMA_ROWS, *SWITCH_ROWS,
    *LABEL_ROWS,
)  # fmt: skip
NAMES = ROWS.keys() | HARMLESS

# Words that are names of fields, too, but stand for something else: where, and what.
OTHER_WORDS = {"safetensors_file.py": {"dtype"}}  # an entry of a tensor in its header


def strays(place: str, text: str) -> set[str]:
    """The names of fields that a file outside of the rows quotes."""
    return NAMES & set(quoted(text)) - OTHER_WORDS.get(place, set())


def texts() -> dict[str, str]:
    """Every module that deals with Hugging Face folders, but the rows and what is shipped."""
    found = {}
    for path in sorted(HOME.rglob("*.py")):
        place = path.relative_to(HOME).as_posix()
        home = place.startswith("fields/") and path.stem in HOMES
        if not home and not place.startswith("shipped/"):
            found[place] = path.read_text(encoding="utf-8")
    return found


def test_no_name_stands_outside_its_row() -> None:
    assert {place: names for place, text in texts().items() if (names := strays(place, text))} == {}


def test_every_exemption_is_needed() -> None:
    for place, words in OTHER_WORDS.items():
        assert words <= set(quoted(texts()[place]))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('reader.integer("hidden_size")', {"hidden_size"}),
        ('"""\nwho rope_theta\n""".split()', {"rope_theta"}),
        ('f"{where}: hidden_size is wrong"', set()),
        ('keys = {"dtype", "use_cache"}', {"dtype", "use_cache"}),
    ],
)
def test_a_stray_name_is_found(text: str, names: set[str]) -> None:
    assert strays("config.py", text) == names
    assert strays("safetensors_file.py", text) == names - {"dtype"}


def test_a_name_has_one_row() -> None:
    times = Counter(row.name for row in ALL)
    assert {name for name, count in times.items() if count > 1} == set()
    assert not ROWS.keys() & HARMLESS


def test_every_row_has_something_to_say() -> None:
    """A row that no family uses is neutral at some values, tells of something, or is harmless."""
    for row in ALL:
        used = [name for name in MODEL_TYPES if row.use_in(name) is not None]
        assert used or row.neutral or row.changes or row.harmless or row.private
        assert not used or not is_harmless(row.name)
    assert list(FAMILIES) == list(MODEL_TYPES)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_absent_means_what_is_written_of_a_usual_model(name: str) -> None:
    """Each default is read as such, and none is read where a field must be there."""
    family = FAMILIES[name]
    reader = FieldReader({}, "x", name)
    for row in (ROWS[field] for field in family.understood):
        use = row.use_in(name)
        assert use is not None
        if use.absent is not None:
            assert row.read(reader) == use.absent
            assert row.absent(name) == use.absent
        given = 3 if use.absent is None else use.absent
        try:
            assert row.read(FieldReader({row.name: None}, "x", name)) in (use.absent, None, False)
        except BadCheckpointError:
            assert use.absent is None
        if isinstance(given, int | float) and not isinstance(given, bool):
            assert row.read(FieldReader({row.name: given}, "x", name)) == given


@pytest.mark.parametrize("name", EVERY)
def test_what_is_written_is_what_the_rows_say(name: str) -> None:
    family, fields = written_fields(EVERY[name], name)
    own = {n: value for n, value in fields.items() if n in family.understood}
    uses = {row.name: use for row in ALL if (use := row.use_in(name)) is not None}
    wanted = {n: use.value(EVERY[name]) for n, use in uses.items() if use.value is not None}
    assert own == {
        n: value for n, value in wanted.items() if value is not None or not uses[n].optional
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "wanted a name"),
    ({"uses": (Use(("llama",), flag), Use(("gpt2", "llama"), flag))}, "one use for each family"),
    ({"harmless": True, "neutral": (None,)}, "is harmless, and said to matter"),
    ({"harmless": True, "uses": (Use(("llama",), flag),)}, "is harmless, and said to matter"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_a_row_is_checked(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Field(**{"name": "x", **changes})
    assert {part.name for part in parts(Field)} >= changes.keys()


def test_a_use_is_checked() -> None:
    for families in ((), ("llama", "mamba")):
        with pytest.raises(ValueError, match="wanted families of llama"):
            Use(families, flag)


def test_a_field_is_read_in_its_families_only() -> None:
    row = Field("odd", (Use(("llama",), flag, True),))
    assert row.read(FieldReader({}, "x", "llama")) is True
    with pytest.raises(LookupError, match="odd: a model of type gpt2 does not use it"):
        row.read(FieldReader({"odd": True}, "x", "gpt2"))
