"""Reading a target model from the YAML file that ``--to`` names."""

from pathlib import Path

from flmgrow.cli.parsing import read_small_file
from flmgrow.storage.strict_yaml import parse_yaml
from flmgrow.surgery.target_file import TargetFile, parse_target

_MOST_BYTES = 1 << 16


def read_target_file(path: Path | None) -> TargetFile:
    """Return the target in a YAML file, or an empty one for None.

    Raises UsageError, naming each problem.
    """
    if path is None:
        return parse_target({})
    data = parse_yaml(read_small_file("--to", path, _MOST_BYTES), str(path))
    return parse_target({} if data is None else data, str(path))
