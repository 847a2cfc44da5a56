"""``config.json`` of published models, as other programs have them (``published.json``).

An entry names the model, and where its fields are from. "verbatim": the source holds the whole
file. "printed": it holds what transformers printed of it. "quoted": it holds some of the fields,
which are here as they stand there. The number of parameters is the one that transformers' own class
has. What has to be "vouched" for stops the reading otherwise.
"""

import json
from pathlib import Path
from typing import Any

from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.model.config import ModelConfig

Fields = dict[str, Any]
FILES: dict[str, Fields] = json.loads(
    Path(__file__).with_name("published.json").read_text(encoding="utf-8")
)


def fields_of(name: str) -> Fields:
    """Return the fields of a model; of one that reads pictures, too, those of its text model."""
    whole: Fields = FILES[name]["config"]
    fields: Fields = whole.get("text_config", whole)
    return fields


def model_of(name: str) -> ModelConfig:
    """Return what the file of a model describes."""
    fields = fields_of(name)
    options = ReadOptions(ignored_fields=tuple(FILES[name].get("vouched", ())))
    return read_fields(family_of(fields, "x"), fields, "x", options)
