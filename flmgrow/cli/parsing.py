"""What the text of an option means, and the small files that options name."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.text import Found, Text

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read_small_file(option: str, path: Path, most: int) -> bytes:
    """Return what is in a file the user named.

    Raises:
        UsageError: Unless it is a file of a sensible size.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} {path}: is not a regular file")
        if (size := path.stat().st_size) > most:
            raise UsageError(
                Text(f"{option} {path}: has ", Found(size), " bytes"), wanted=f"at most {most}"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from None


def parse_size(text: str, option: str = "--max-memory") -> int:
    """Return the bytes that ``800M`` or ``4G`` mean, given to ``option``.

    Raises:
        UsageError: For anything else.
    """
    body = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = body[-1:] if body[-1:] in _UNITS and body[-1:] else ""
    try:
        value = float(body.removesuffix(unit)) if unit else float(body)
        return int(value * _UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text}: not a size", "such as 800M or 4G") from None


def shard_bytes(text: str) -> int:
    """Return the bytes that ``--shard-size`` means.

    Raises:
        UsageError: For none at all.
    """
    size = parse_size(text, "--shard-size")
    if size < 1:
        raise UsageError(f"--shard-size {text}: wanted at least one byte", "such as 5G")
    return size


def parse_layers(text: str | None) -> list[int] | None:
    """Return the numbers in ``8,8,7,7``.

    Raises:
        UsageError: For anything else.
    """
    if text is None:
        return None
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--pipeline-layers {text}: not a list of numbers", "such as 8,8,7,7"
        ) from None


def parse_amount(option: str, text: str) -> int:
    """Return the number that ``13B`` or ``1,000`` means, given to ``option``.

    Raises:
        UsageError: For anything else.
    """
    from flmgrow.trainer.stage.section import MOST, amount

    try:
        found = amount(text)
    except ValueError:
        found = text
    if not isinstance(found, int) or not 1 <= found <= MOST:
        raise UsageError(f"{option} {text}: not an amount", "such as 13B or 1,000")
    return found


def parse_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Return the whole numbers in ``64,128,256``, given to ``option``; none if it was not.

    Raises:
        UsageError: For anything else.
    """
    try:
        found = () if text is None else tuple(int(word) for word in text.split(","))
    except ValueError:
        found = (0,)
    if any(number < 1 for number in found) or len(set(found)) != len(found):
        raise UsageError(f"{option} {text}: not a list of numbers", "such as 64,128,256")
    return found
