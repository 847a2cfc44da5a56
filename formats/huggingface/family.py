"""What a family of transformers is: where its tensors are, and the fields that it has.

A reading function refuses what Megatron's block cannot say; what is written says what it can, and
it is left to the caller to find out whether that is all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flmgrow.formats.huggingface.fields.model_rows import MAX_POSITIONS
from flmgrow.formats.huggingface.fields.names import ROWS
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.fields.switch_rows import AUTO_MAP
from flmgrow.formats.tables.row import Row
from flmgrow.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """A ``model_type`` of transformers.

    ``rows`` say where its tensors are, ``prefix`` is what all keys but the head's begin with (and
    lack where the bare model was saved), ``buffers`` match what is stored and no parameter.
    ``read`` translates the fields that it uses; ``positions`` is the one that holds the longest
    text's length. ``usual_ids`` are those that begin and end a text where no
    field says it. ``code`` says which class of which shipped file stands for
    each of transformers' automatic classes, where it has none; ``older_code`` what published
    models say of it that transformers has classes for by now.
    """

    name: str
    architecture: str
    rows: tuple[Row, ...]
    prefix: str
    buffers: re.Pattern[str]
    read: Callable[[FieldReader], ModelConfig]
    positions: Field[int] = MAX_POSITIONS
    usual_ids: tuple[int | None, int | None] = (None, None)
    code: Mapping[str, str] = field(default_factory=dict)
    older_code: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> dict[str, object]:
        """Fields that say the same of each of its models."""
        return {AUTO_MAP.name: dict(self.code)} if self.code else {}

    @cached_property
    def understood(self) -> frozenset[str]:
        """The names of the fields that are translated."""
        return frozenset(name for name, row in ROWS.items() if row.use_in(self.name) is not None)

    def write(self, config: ModelConfig) -> dict[str, object]:
        """Return the fields for ``config``.

        What has no field is left out, and so is an optional field that has nothing to say.
        """
        uses = {name: row.use_in(self.name) for name, row in ROWS.items()}
        values = {n: use.value(config) for n, use in uses.items() if use is not None and use.value}
        silent = {n for n, use in uses.items() if use is not None and use.optional}
        return {n: value for n, value in values.items() if value is not None or n not in silent}

    @property
    def code_files(self) -> list[str]:
        """The names of the shipped files, sorted."""
        return sorted({f"{place.partition('.')[0]}.py" for place in self.code.values()})

    def is_plain(self, name: str, value: object) -> bool:
        """Whether a field that is not understood has a value that does not matter."""
        if name == AUTO_MAP.name and isinstance(value, dict) and self.older_code:
            return value.items() <= self.older_code.items()
        return ROWS[name].is_neutral(value) or (name in self.fixed and value == self.fixed[name])
