"""What a file beside a checkpoint, or another checkpoint, says of the same model."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.contents import CONFIG, MAX_CONFIG_BYTES, is_huggingface
from flmgrow.formats.megatron.arguments.classes import Arguments, refuse_unknown
from flmgrow.formats.megatron.arguments.model import written_arguments
from flmgrow.formats.megatron.arguments.names import UNDERSTOOD
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.formats.megatron.arguments.run_config import read_run_config
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.folders import is_distributed, iteration_folder
from flmgrow.formats.megatron.legacy.reader import first_arguments
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object

_LAYOUT = frozenset(
    """
    tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size
    num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank
    decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
    num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage
    account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
    pipeline_model_parallel_layout padded_vocab_size
    """.split()
)
MODEL_ARGUMENTS = UNDERSTOOD - _LAYOUT | {"make_vocab_size_divisible_by"}
"""Those that say what a model is, and not how it lies in files."""

_UNSAID = {"rotary_base": 10000, "rotary_percent": 1.0}
"""What Megatron-LM takes where arguments do not say, of what no array shows."""


def arguments_from(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return the arguments that ``path`` says a model has, and what is to be told of them.

    It is a ``run_config.yaml``, a ``config.json``, or a checkpoint's folder of any format. Raises
    UsageError or BadCheckpointError.
    """
    if not path.exists():
        hub = str(path).startswith("hf:")
        raise UsageError(
            f"--args-from {path}: no such file or folder",
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
        f"--args-from {path}: wanted a run_config.yaml, a config.json or a checkpoint's folder"
    )


def _model_only(arguments: Arguments, where: str) -> dict[str, object]:
    refuse_unknown(arguments, where)
    own = {name: value for name, value in arguments.items() if name in MODEL_ARGUMENTS}
    return {**_UNSAID, **own}


def _of_fields(path: Path) -> dict[str, object]:
    file = ReadOnlyFile(path)
    try:
        fields = read_object(file, MAX_CONFIG_BYTES)
    finally:
        file.close()
    config = read_fields(family_of(fields, str(path)), fields, str(path))
    new = new_arguments(config, config.vocab, "float32", "local")
    return _model_only(written_arguments(new, config), str(path))


def _of_checkpoint(path: Path) -> dict[str, object]:
    folder = iteration_folder(path)
    if not is_distributed(folder):
        return _model_only(*first_arguments(folder))
    contents = DistFolder(folder)
    try:
        return _model_only(arguments_in(contents.root, contents.where), contents.where)
    finally:
        contents.close()
