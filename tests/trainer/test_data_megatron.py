"""What flmgrow writes must be what megatron-core writes and reads.

megatron-core runs in a process of its own (see ``megatron_runs``): ``tests/megatron_data.py``.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import make_jsonl, make_ranks

from flmgrow.cli.app import run
from flmgrow.trainer.indexed import token_dtype

SCRIPT = Path(__file__).parents[1] / "megatron_data.py"
TEXTS = [f"{i}: the thing " + "ü" * (i * i % 23) for i in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, with two and with four bytes per token."""
    pytest.importorskip("tiktoken")
    folder = tmp_path_factory.mktemp("corpora")
    texts = make_jsonl(folder / "a.jsonl", TEXTS)
    ranks = make_ranks(folder / "tiny.tiktoken")
    for name, options in {
        "bytes": ["--tokenizer", "bytes"],
        "ranks": ["--tokenizer", str(ranks), "--workers", "3"],
        "wide": ["--tokenizer", str(make_ranks(folder / "wide.tiktoken", 70_000))],
    }.items():
        assert run(["data", "prepare", str(texts), str(folder / name), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What megatron-core makes of them."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", ["bytes", "ranks", "wide"])
def test_the_files_are_megatrons_own(name: str, folder: Path, found: dict[str, Any]) -> None:
    own = {
        ending: hashlib.sha256((folder / name / f"data.{ending}").read_bytes()).hexdigest()
        for ending in ("bin", "idx")
    }
    assert own == found[name]["built"]
    manifest = json.loads((folder / name / "flmgrow-data.json").read_text())
    assert manifest["dtype"] == found[name]["dtype"]
    assert manifest["tokens"] == sum(map(len, found[name]["documents"]))


@pytest.mark.parametrize("name", ["bytes", "ranks", "wide"])
def test_megatron_reads_the_texts(name: str, folder: Path, found: dict[str, Any]) -> None:
    from flmgrow.trainer.tokenizers import open_tokenizer

    kind = (
        "bytes"
        if name == "bytes"
        else str(folder / ("tiny.tiktoken" if name == "ranks" else "wide.tiktoken"))
    )
    tokenizer = open_tokenizer(kind)
    documents = found[name]["documents"]
    assert [document[-1] for document in documents] == [tokenizer.eod] * len(TEXTS)
    assert [tokenizer.decode(document[:-1]) for document in documents] == TEXTS


def test_the_tokens_type_is_megatrons(found: dict[str, Any]) -> None:
    own = {size: token_dtype(int(size)).name for size in found["optimal"]}
    assert own == found["optimal"]
