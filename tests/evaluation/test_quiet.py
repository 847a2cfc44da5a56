"""What other packages print while a command speaks: nothing, but bars that somebody waits for."""

import io
import logging
import sys
import warnings

import pytest
from datasets.utils import tqdm as bars_of_datasets
from tqdm.auto import tqdm

from flmgrow.evaluation.quiet import TALKATIVE, quiet


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, kind: type, **bar: object) -> str:
    monkeypatch.setattr(sys, "stderr", screen)
    with quiet("small"), kind(total=2, ncols=80, mininterval=0, **bar) as shown:
        shown.update()
    return screen.getvalue()


def test_bars_are_drawn_on_a_terminal_until_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, Terminal(), tqdm, desc="answers")
    assert "small: answers:  50%" in text
    assert text.rstrip(" ").endswith("\r")  # nothing stays
    for screen, kind, bar in (
        (io.StringIO(), tqdm, {"desc": "answers"}),
        (Terminal(), tqdm, {}),
        (Terminal(), tqdm, {"desc": "answers", "disable": True}),
        (Terminal(), bars_of_datasets, {"desc": "Map"}),
    ):
        assert drawn(monkeypatch, screen, kind, **bar) == ""


def test_afterwards_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [logging.getLogger(name).level for name in TALKATIVE]
    with quiet():
        warnings.warn("not told", stacklevel=1)
        assert not any(logging.getLogger(f"{name}.x").isEnabledFor(50) for name in TALKATIVE)
    assert [logging.getLogger(name).level for name in TALKATIVE] == levels
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=2, ncols=80, mininterval=0) as bar:
        bar.update()
    assert "50%" in screen.getvalue()
