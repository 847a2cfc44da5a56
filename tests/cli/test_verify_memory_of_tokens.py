"""What tokens and gradients take is told before anything is read, and is about what they take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import accepted, refused
from peak_memory import peak
from pico import CONFIGS, make_checkpoint

from flmgrow.surgery.evidence.memory import forward_bytes, gradient_bytes

MODEL = replace(
    CONFIGS["llama"], hidden=256, ffn=1024, kv_groups=4, queries_per_group=1, head_dim=64,
    vocab=8_000,
)  # fmt: skip


def tokens(folder: Path, count: int) -> Path:
    path = folder / "tokens.json"
    path.write_text(json.dumps([[number % 50 for number in range(count)]]))
    return path


def test_tokens_that_do_not_fit_are_refused_and_the_hint_leads_on(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    command = ("verify", source, source, "--tokens", tokens(tmp_path, 800), "--workers", 1)
    outcome = refused(
        2, "--tokens: 1 x 800 tokens need about", *command, "--max-memory", "500M", place=tmp_path
    )
    more = int(outcome.err.partition("hint: give ")[2].partition(" MiB more")[0])
    assert 0 < more < 400
    accepted(*command, "--max-memory", f"{500 + more}M")


def test_gradients_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    accepted("expand", source, tmp_path / "b", "--ffn-hidden-size", 48)
    command = ("verify", source, tmp_path / "b", "--gradients", "--workers", 1)
    long = ("--tokens", tokens(tmp_path, 600))
    refused(2, "--gradients: both models on 1 x 600 tokens need about", *command, *long,
            "--max-memory", "450M", place=tmp_path)  # fmt: skip
    accepted(*command, "--max-memory", "450M")


def test_what_is_needed_grows_with_the_square_of_the_length_and_with_both_models() -> None:
    short, long = (forward_bytes(MODEL, 1, length, 8, 1 << 22) for length in (8192, 16384))
    assert 3.5 < long / short < 4
    wider = replace(MODEL, ffn=2048)
    assert gradient_bytes(MODEL, wider, 1, 16) > gradient_bytes(MODEL, MODEL, 1, 16)


@pytest.mark.slow
def test_what_is_said_is_enough(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", MODEL, dtype="float32")
    grown = tmp_path / "b"
    accepted("expand", source, grown, "--ffn-hidden-size", 1536)
    command = ("verify", source, grown, "--skip-checksums", "--skip-elements", "--no-receipt")
    configs = MODEL, replace(MODEL, ffn=1536)
    forward = forward_bytes(configs[1], 1, 1024, 8, 1 << 22) >> 20
    long = ("--tokens", tokens(tmp_path, 1024), "--max-memory", "4G")
    assert forward / 2 < peak(0, *command, *long) < 500 + forward
    both = gradient_bytes(*configs, 1, 256) >> 20
    some = ("--tokens", tokens(tmp_path, 256), "--max-memory", "4G", "--gradients")
    assert both / 2 < peak(0, *command, *some) < 400 + both
