"""Verifying holds blocks of weights, never a whole table: its memory does not grow with a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit, rank_files
from peak_memory import peak
from pico import CONFIGS, even, make_checkpoint

from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.opening import open_checkpoint
from flmgrow.surgery.comparison import Side, compare
from flmgrow.surgery.health import examine

LARGE = replace(
    CONFIGS["llama"], hidden=512, ffn=2048, kv_groups=8, queries_per_group=1, head_dim=64,
    vocab=60_000,
)  # fmt: skip


@pytest.mark.slow
def test_memory_stays_below_what_was_given(tmp_path: Path) -> None:
    """Two copies of a table of 117 MiB, and 45 MiB of layers; then one copy drifts in a row."""
    source = make_checkpoint(tmp_path / "a", LARGE, even(LARGE, pp=2), dtype="float32")
    grown = tmp_path / "b"
    accepted("expand", source, grown, "--hidden-size", 640, "--method", "zero")
    assert sum(file.stat().st_size for file in rank_files(grown)) > 300 << 20
    options = ("--workers", 2, "--max-memory", "450M")
    assert peak(0, "verify", source, grown, *options) < 450

    def drift(content: dict[str, dict[str, torch.Tensor]]) -> None:
        content["model"]["output_layer.weight"][31_000] += 1

    edit(rank_files(source)[1], drift)
    assert peak(1, "verify", source, grown, *options, "--skip-checksums") < 450
    assert peak(0, "inspect", source, "--health") < 250


def test_a_limit_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    command = ("verify", source, source, "--workers", 2, "--max-memory", "100M")
    refused(2, "--max-memory is 100 MiB, 2 workers need at least 404 MiB", *command, place=tmp_path)


@pytest.mark.parametrize("model", ["llama", "gpt", "nemotron"])
def test_a_model_runs_in_blocks_of_rows(model: str, tmp_path: Path) -> None:
    """No more than the block is read at once, and what comes out is the same."""
    source = make_checkpoint(tmp_path / "a", model)
    tokens = torch.tensor([[1, 2, 3, 1]])
    read: list[int] = []
    with open_checkpoint(source) as opened:
        whole = Side(opened, masks_of(opened), torch.float64)
        blocks = replace(whole, block=64, progress=read.append)
        assert compare(whole, blocks, tokens, {}, 1.0).max_logit < 1e-13
    assert max(read) <= 64 * 8


def test_elements_are_the_same_in_any_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks cut fused arrays anywhere; a difference is named by its place all the same."""
    source = make_checkpoint(tmp_path / "a", "qwen", even(CONFIGS["qwen"], 2, 2))
    accepted("expand", source, tmp_path / "b", "--ffn-hidden-size", 24, "--hidden-size", 16)
    file = rank_files(tmp_path / "b")[3]

    def change(content: dict[str, dict[str, torch.Tensor]]) -> None:
        content["model"]["decoder.layers.1.self_attention.linear_qkv.weight"][21, 5] += 1

    edit(file, change)
    said = set()
    for block in (37, 1 << 20):
        monkeypatch.setattr("flmgrow.surgery.verify.ELEMENT_BLOCK", block)
        outcome = flmgrow("verify", source, tmp_path / "b", "--skip-checksums", "--no-receipt")
        assert outcome.code == 1
        said |= {
            line for line in outcome.out.splitlines() if line.startswith("DIFFERENT  elements")
        }
    (line,) = said
    assert "mp_rank_01_001" in line
    assert "weight of query differs in [3, 3, 0, 1, 5]: " in line


def test_copies_that_drifted_are_measured_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = even(CONFIGS["llama"], 2, 2)
    source = make_checkpoint(tmp_path / "a", "llama", layout, dtype="float32")

    def drift(content: dict[str, dict[str, torch.Tensor]]) -> None:
        content["model"]["output_layer.weight"][[0, 3, 20]] += torch.tensor([1.0, 0.25, 0.5])[
            :, None
        ]

    edit(rank_files(source)[1], drift)
    said = set()
    for limit in (4, 52, 1 << 20):
        monkeypatch.setattr("flmgrow.surgery.replicas.BLOCK", limit)
        with open_checkpoint(source) as opened:
            said.add("; ".join(examine(opened).drift))
    (line,) = said
    assert "36 of 384 entries differ, by up to 1" in line
