"""Keeping what other packages print off a command's lines.

lm-evaluation-harness logs every step it takes, and it and the packages below it draw a bar for each
task, on whatever stderr is. Here they say nothing while a command speaks, and a bar is drawn on a
terminal alone, and goes when it is full.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

TALKATIVE = ("lm_eval", "datasets", "transformers", "huggingface_hub", "accelerate", "fsspec")
"""Packages whose log is kept back, errors included: what they raise is told."""


@contextmanager
def quiet() -> Iterator[None]:
    """Let other packages be quiet inside the block, but for bars on a terminal."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _passing_bars(), _no_git():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_git() -> Any:
    """Let the harness not ask git, aloud, which commit the folder that the user is in has."""
    return mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None)


@contextmanager
def _passing_bars() -> Iterator[None]:
    """Let every bar of tqdm's be drawn on a terminal alone, and go when it is full."""
    from tqdm.std import tqdm

    made: Any = tqdm.__init__

    def make(bar: Any, *arguments: Any, **options: Any) -> None:
        hidden = options.get("disable") or not sys.stderr.isatty()
        made(bar, *arguments, **{**options, "disable": bool(hidden), "leave": False})

    with mock.patch.object(tqdm, "__init__", make):
        yield
