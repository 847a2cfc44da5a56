"""Putting errors into the keys of the file that was written.

Whoever wrote a stage file or a schedule wants to hear what is wrong with it in its own keys. What
refuses it is what every command uses, and that speaks of options, fields and axes.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.trainer.stage.model import ModelSection
from flmgrow.trainer.stage.sections import LayoutSection

KEYS = {
    **{name: f"model.{name}" for name in ModelSection.model_fields},
    **{name: f"layout.{name}" for name in LayoutSection.model_fields},
    "sequence_length": "data.sequence_length",
    "layer": "model.num_layers",
    "hidden": "model.hidden_size",
    "ffn": "model.ffn_hidden_size",
    "kv_group": "model.num_query_groups",
    "vocab": "model.vocab_size",
}
"""A stage file's keys by the names of options, fields and axes."""

_SPOKEN = re.compile(r"^([a-z_]+)(?=[ :])|--([a-z]+(?:-[a-z]+)*)")
_BEGINS_WITH_KEY = re.compile(r"(model|layout|growth|data)[.:]")


@contextmanager
def told_of(path: Path, *where: str) -> Iterator[None]:
    """Let a UsageError inside be of the file ``path``, and of ``where`` in it."""
    try:
        yield
    except UsageError as error:
        raise error.relative_to(path).at(path, *where) from None


@contextmanager
def in_keys(section: str, keys: Mapping[str, str] = KEYS) -> Iterator[None]:
    """Let what is refused inside speak of a file's ``keys``, and begin with one.

    It comes from what every command uses, and speaks of options and axes. ``section`` is the key
    where it names none.
    """
    try:
        yield
    except UsageError as error:
        message, hint = _keyed(error.message, keys), _keyed(error.hint, keys)
        where = "" if _BEGINS_WITH_KEY.match(message) else f"{section}: "
        raise UsageError(f"{where}{message}", hint) from None


def _keyed(text: str, keys: Mapping[str, str]) -> str:
    """Return ``text`` with ``keys`` for options, and for the name that it begins with."""
    return _SPOKEN.sub(lambda f: keys.get((f[1] or f[2]).replace("-", "_"), f[0]), text)
