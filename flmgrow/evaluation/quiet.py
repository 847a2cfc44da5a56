"""Keeping what other packages print off a command's lines.

lm-evaluation-harness logs every step it takes, and it and the packages below it draw bars for each
task, on whatever stderr is. Here they say nothing while a command speaks, and those bars alone are
drawn that somebody waits for: on a terminal, until they are full.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

TALKATIVE = ("lm_eval", "datasets", "transformers", "huggingface_hub")
"""Packages whose log is kept back, errors included: what they raise is told. They set its level
when they are imported.
"""


@contextmanager
def quiet(label: str = "") -> Iterator[None]:
    """Let other packages be quiet inside the block, but for bars on a terminal.

    ``label`` stands in front of each.
    """
    for name in TALKATIVE:
        import_module(name)
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _passing_bars(label), _no_git():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_git() -> Any:
    """Let the harness not ask git, aloud, which commit the folder that the user is in has."""
    return mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None)


@contextmanager
def _passing_bars(label: str) -> Iterator[None]:
    """Let bars of tqdm's be drawn on a terminal alone, if they have a name, and go when full.

    What has none is done in a moment, and so is what ``datasets`` counts.
    """
    from tqdm.std import tqdm

    made: Any = tqdm.__init__

    def make(bar: Any, *arguments: Any, **options: Any) -> None:
        name = options.get("desc")
        short = not name or type(bar).__module__.startswith("datasets")
        hidden = bool(options.get("disable") or short or not sys.stderr.isatty())
        named = f"{label}: {name}" if label else name
        made(bar, *arguments, **{**options, "desc": named, "disable": hidden, "leave": False})

    with mock.patch.object(tqdm, "__init__", make):
        yield
