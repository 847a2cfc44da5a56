"""Gemma's embeddings are multiplied by the root of the width, which transformers rounds."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from commands import accepted
from transformers_models import load_model, save_model

NOTE = "transformers, which rounds the root of the width"
WIDTH = 32


def multiplier(folder: Path, dtype: torch.dtype) -> float:
    """Return what transformers multiplies embeddings with: what it makes of ones."""
    table = load_model(folder, dtype)[0].model.embed_tokens
    with torch.no_grad():
        table.weight.fill_(1)
        return float(table(torch.tensor([0]))[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "width", "told", "grown"),
    [
        ("bfloat16", 48, "0.14% larger", 1.001449),
        ("bfloat16", 56, "0.18% smaller", 0.998160),
        ("bfloat16", 128, "", 1.0),
        ("float32", 48, "", 1.0),
    ],
)
def test_what_it_makes_of_embeddings_is_told(
    tmp_path: Path, dtype: str, width: int, told: str, grown: float
) -> None:
    """Beside what it should make of them, by which the table has shrunk."""
    kind = getattr(torch, dtype)
    save_model("gemma2", tmp_path / "a", kind)
    words = ("--hidden-size", width, "--method", "zero")
    notes = accepted("expand", tmp_path / "a", tmp_path / "b", *words).err
    assert (NOTE in notes) == bool(told)
    assert f"embeddings are {told}" in notes or not told
    before = multiplier(tmp_path / "a", kind)
    found = multiplier(tmp_path / "b", kind) / before * sqrt(WIDTH / width)
    assert found == pytest.approx(grown, abs=1e-6)


@pytest.mark.slow
def test_what_is_written_wider_or_not_multiplied_is_not_told_of(tmp_path: Path) -> None:
    words = ("--hidden-size", 48, "--method", "zero")
    save_model("gemma2", tmp_path / "a", torch.bfloat16)
    out = tmp_path / "b"
    assert NOTE not in accepted("expand", tmp_path / "a", out, *words, "--dtype", "float32").err
    assert multiplier(out, torch.float32) == pytest.approx(sqrt(48), rel=1e-7)
    save_model("llama", tmp_path / "c", torch.bfloat16)
    assert NOTE not in accepted("expand", tmp_path / "c", tmp_path / "d", *words).err
