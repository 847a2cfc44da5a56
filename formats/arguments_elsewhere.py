"""What a file beside a checkpoint, or another checkpoint, says of the same model."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.contents import CONFIG, MAX_CONFIG_BYTES, is_huggingface
from flmgrow.formats.megatron.arguments.classes import refuse_unknown
from flmgrow.formats.megatron.arguments.layout_rows import LAYOUT_ROWS
from flmgrow.formats.megatron.arguments.model import written_arguments
from flmgrow.formats.megatron.arguments.model_rows import ROTARY_BASE, ROTARY_PERCENT
from flmgrow.formats.megatron.arguments.names import UNDERSTOOD
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.formats.megatron.arguments.row import Arguments, understood_names
from flmgrow.formats.megatron.arguments.run_config import read_run_config
from flmgrow.formats.megatron.arguments.vocabulary_rows import MULTIPLE, PADDED_VOCAB
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.folders import is_distributed, iteration_folder
from flmgrow.formats.megatron.legacy.reader import first_arguments
from flmgrow.formats.opening import distributed_folder
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object
from flmgrow.text import Setting, Text

_LAYOUT = understood_names((*LAYOUT_ROWS, PADDED_VOCAB))
MODEL_ARGUMENTS = UNDERSTOOD - _LAYOUT | {MULTIPLE.name}
"""Those that say what a model is, and not how it lies in files."""

_UNSAID = {ROTARY_BASE.name: 10000, ROTARY_PERCENT.name: 1.0}
"""What Megatron-LM takes where arguments do not say, of what no array shows."""


def arguments_from(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return the arguments that ``path`` says a model has, and what is to be told of them.

    It is a ``run_config.yaml``, a ``config.json``, or a checkpoint's folder of any format.

    Raises:
        UsageError: The checkpoint is damaged.
        BadCheckpointError: The checkpoint is damaged.
    """
    if not path.exists():
        hub = str(path).startswith("hf:")
        raise UsageError(
            Text(Setting("args_from"), f" {path}: no such file or folder"),
            "download the config.json of that model, and give it" if hub else "",
        )
    if path.is_dir() and is_huggingface(path):
        return _of_fields(path / CONFIG), []
    if path.is_dir():
        return _of_checkpoint(path), []
    if path.suffix == ".json":
        return _of_fields(path), []
    if path.suffix in (".yaml", ".yml"):
        return read_run_config(path)
    raise UsageError(
        Text(
            Setting("args_from"),
            f" {path}: wanted a run_config.yaml, a config.json or a checkpoint's folder",
        )
    )


def _model_only(arguments: Arguments, where: str) -> dict[str, object]:
    refuse_unknown(arguments, where)
    own = {name: value for name, value in arguments.items() if name in MODEL_ARGUMENTS}
    return {**_UNSAID, **own}


def _of_fields(path: Path) -> dict[str, object]:
    with ReadOnlyFile(path) as file:
        fields = read_object(file, MAX_CONFIG_BYTES)
    config = read_fields(family_of(fields, str(path)), fields, str(path))
    new = new_arguments(config, config.vocab, "float32", "local")
    return _model_only(written_arguments(new, config), str(path))


def _of_checkpoint(path: Path) -> dict[str, object]:
    folder = iteration_folder(path)
    if not is_distributed(folder):
        return _model_only(*first_arguments(folder))
    contents = distributed_folder(folder)
    try:
        return _model_only(arguments_in(contents.root, contents.where), contents.where)
    finally:
        contents.close()
