"""Verification computes where its tokens are, which a CPU alone can prove.

A tensor that is made without a word on its device is made on the usual one. If that is one that
holds no values, whatever forgot to say where fails.
"""

from pathlib import Path

import pytest
import torch
from growing import grow_checkpoint
from pico import CONFIGS, make_checkpoint

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.module import Model
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.function import Forward, check_function
from flmgrow.surgery.evidence.tokens import draw_tokens
from flmgrow.surgery.weights import load_resident

NOWHERE = torch.device("meta")


def checked(source: Path, result: Path, usual: torch.device) -> Check:
    with open_checkpoint(source) as first, open_checkpoint(result) as second:
        tokens = draw_tokens(first.config.vocab, 12, seed=0)
        with usual:
            return check_function(first, second, None, tokens, Forward())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_says_where_it_is(name: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", name)
    config = CONFIGS[name]
    target = Target(ffn=config.ffn * 2, vocab=config.vocab + 8, methods=parse_methods("mask"))
    grow_checkpoint(source, tmp_path / "b", target)
    wanted = checked(source, tmp_path / "b", torch.device("cpu"))
    assert checked(source, tmp_path / "b", NOWHERE) == wanted


def test_a_model_in_memory_does_so_too(tmp_path: Path) -> None:
    with open_checkpoint(make_checkpoint(tmp_path / "a", "flm")) as opened, NOWHERE:
        model = load_resident(opened, None, "cpu")
        found = model.generate(torch.tensor([[1, 2, 3]], device="cpu"), 3)
    assert isinstance(model, Model)
    assert found.shape == (1, 6)


def test_what_forgets_to_say_so_fails() -> None:
    """The control."""
    with NOWHERE, pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.zeros(3).sum())
