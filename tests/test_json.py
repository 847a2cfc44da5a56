"""What ``--json`` prints is what the reference says, key by key."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from commands import accepted
from pico import CONFIGS, make_checkpoint
from tiny_tokenizers import make_jsonl

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "json.md"


@cache
def documented() -> dict[str, list[str]]:
    """The keys that the page lists, by the heading they stand under."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for section in sections
    }


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    source, grown = tmp_path / "a", tmp_path / "b"
    make_checkpoint(source, "llama", optimizer=True)
    accepted("expand", source, grown, "--ffn-hidden-size", 32)
    text = make_jsonl(tmp_path / "text.jsonl", ["hello", "world"])
    points = tmp_path / "points.csv"
    rows = (f"{size},{1 + size**-0.1}" for size in (1e6, 2e6, 4e6, 8e6))
    points.write_text("\n".join(["parameters,loss", *rows]))
    accepted("data", "prepare", text, tmp_path / "corpus", "--tokenizer", "bytes")
    return {
        "A": source,
        "CORPUS": tmp_path / "corpus",
        "POINTS": points,
        "B": grown,
        "NEW": tmp_path / "c",
        "TEXT": text,
        "STUDY": ROOT / "configs" / "study-growth-gpu.yaml",
        "SCHEDULE": ROOT / "configs" / "flm-101b.yaml",
        "BYTES": make_checkpoint(tmp_path / "bytes", replace(CONFIGS["llama"], vocab=257)),
    }


@pytest.mark.parametrize(
    ("heading", "command"),
    [
        ("inspect", "inspect A --tensors --health"),
        ("expand, reshard, import, export, bake", "expand A NEW --num-layers 6 --dry-run"),
        ("verify", "verify A B"),
        ("verify --integrity", "verify --integrity B"),
        ("data prepare", "data prepare TEXT NEW --tokenizer bytes"),
        ("data show", "data show CORPUS --document 1"),
        ("data stats", "data stats CORPUS --sequence-length 4"),
        ("run --dry-run", "run SCHEDULE --dry-run"),
        ("cost", "cost SCHEDULE"),
        ("study --dry-run", "study STUDY --dry-run"),
        ("predict", "predict POINTS --at 1B"),
        ("generate", "generate BYTES --prompt a --tokenizer bytes --max-new-tokens 2"),
        ("eval", "eval BYTES --tasks bits-per-byte:TEXT --out NEW --tokenizer bytes"),
    ],
)
def test_the_reference_lists_every_key(heading: str, command: str, places: dict[str, Path]) -> None:
    command = command.replace(":TEXT", f":{places['TEXT']}")
    words = [places.get(word, word) for word in command.split()]
    assert list(json.loads(accepted(*words, "--json").out)) == documented()[heading]


def test_what_is_written_is_told_as_its_manifest(places: dict[str, Path]) -> None:
    told = json.loads(accepted("reshard", places["A"], places["NEW"], "--tp", 2, "--json").out)
    kept = json.loads((places["NEW"] / "flmgrow.json").read_text(encoding="utf-8"))
    assert told.items() <= kept.items()


def test_every_section_is_compared() -> None:
    assert len(documented()) == 16
    assert all(documented().values())
