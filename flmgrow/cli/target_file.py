"""Reading a target model from the YAML file that ``--to`` names."""

from pathlib import Path

from pydantic import ValidationError

from flmgrow.cli.parsing import read_small_file
from flmgrow.errors import UsageError
from flmgrow.storage.strict_yaml import parse_yaml
from flmgrow.storage.validation import problems
from flmgrow.surgery.target_file import TargetFile

_MOST_BYTES = 1 << 16


def read_target_file(path: Path | None) -> TargetFile:
    """Return the target in a YAML file, or an empty one for None.

    Raises UsageError, naming each problem.
    """
    if path is None:
        return TargetFile.model_validate({})
    text = read_small_file("--to", path, _MOST_BYTES)
    try:
        data = parse_yaml(text, str(path))
        return TargetFile.model_validate({} if data is None else data)
    except ValidationError as error:
        raise UsageError(
            f"{path}: {problems(error.errors())}", "see flmgrow expand --help"
        ) from None
