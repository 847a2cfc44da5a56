"""What to do about a data set that cannot be had.

A task fetches its data from the Hub, or finds it in the Hub's cache where ``HF_HUB_OFFLINE`` is
set. A cluster's nodes often have neither. What the libraries say then is about addresses, retries
and builders; what is needed is the data set's name, where it was looked for, and how to get it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from flmgrow.errors import FlmgrowError, HubError, UsageError
from flmgrow.text import Pass, Text


@contextmanager
def told_if_missing(folder: Path | None) -> Iterator[None]:
    """Let a data set that cannot be loaded inside the block be refused in one line.

    ``folder`` is where the user's data is, which does not have it.

    Raises:
        UsageError: Where the Hub was not to be asked.
        HubError: Where it was.
    """
    import datasets

    load: Callable[..., Any] = datasets.load_dataset

    def find(path: str, name: str | None = None, *arguments: Any, **options: Any) -> Any:
        try:
            return load(path, name, *arguments, **options)
        except FlmgrowError:
            raise
        except Exception as error:  # whatever the Hub, the network and the files make of it
            raise _missing(folder, path, name, error) from error

    with mock.patch.object(datasets, "load_dataset", find):
        yield


def _missing(folder: Path | None, path: str, name: str | None, error: Exception) -> FlmgrowError:
    """Return the refusal of a data set: what to fetch, and where it was looked for."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub import constants

    below = "/".join(filter(None, (path.rpartition("/")[2], name)))
    sought = [] if folder is None else [f"in {folder / below}"]
    sought += [f"in the cache {HF_DATASETS_CACHE}"]
    offline: bool = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {error}".split("\n")[0]
    return (UsageError if offline else HubError)(
        f"not found {', nor '.join(sought)}, and the Hub: {why}",
        Text(
            "evaluate once where there is a network, and bring the cache along; or put a file for "
            f"each split, such as test.jsonl, into DIR/{below}, and ",
            Pass("data", "DIR"),
        ),
        where=f"data set {path}" if name is None else f"data set {path}, {name}",
    )
