"""Reading a target model from the YAML file that ``--to`` names."""

from pathlib import Path

from flmgrow.cli.parsing import read_small_file
from flmgrow.storage.strict_yaml import parse_yaml
from flmgrow.surgery.target_file import parse_target

_MOST_BYTES = 1 << 16


def read_target_file(path: Path | None) -> dict[str, object]:
    """Return what a YAML file asks for, in the words of the options; nothing for None.

    Raises:
        UsageError: The message names each problem.
    """
    if path is None:
        return {}
    data = parse_yaml(read_small_file("--to", path, _MOST_BYTES), str(path))
    return parse_target({} if data is None else data, str(path)).model_dump(exclude_none=True)
