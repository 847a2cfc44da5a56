"""What one rank meets alone is told once, in a line, and ends all: nobody hangs or complains."""

import resource
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_runs import command, environment, make_data, saved, stage_data, train, write_stage

from flmgrow.trainer.indexed import index_bytes, read_index


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def assert_told_once(told: str, error: str) -> None:
    lines = [line for line in told.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
    assert error in lines[0]
    assert "Traceback" not in told


def test_a_file_that_only_one_rank_reads_is_damaged(data: Path, tmp_path: Path) -> None:
    def stage(steps: int) -> Path:
        changes: dict[str, Any] = {"layout": {"tp": 2}, "checkpoint": {"format": "megatron"}}
        return write_stage(tmp_path, stage_data(data, training={"steps": steps}, **changes))

    train(stage(2))
    file = tmp_path / "checkpoints" / "iter_0000002" / "mp_rank_01" / "model_optim_rng.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    assert_told_once(train(stage(4), expect=3), f"{file}: archive/data/")


def test_a_token_that_the_model_has_not(data: Path, tmp_path: Path) -> None:
    """Each sample comes once in 10 steps, so some replica meets it, in the middle of a step."""
    index = read_index(data / "corpus" / "data.idx")
    content = stage_data(data, layout={"dp": 2}, training={"steps": 10})
    del content["data"]["teacher"], content["data"]["validation_share"]
    content["data"]["corpora"] = [{"path": str(short_corpus(tmp_path, 2000, index.dtype))}]
    told = train(write_stage(tmp_path, content), expect=3)
    assert_told_once(told, "the corpora hold token 300, the model has 0 to 256")
    assert not list((tmp_path / "checkpoints").glob("iter_0000010"))


def short_corpus(folder: Path, tokens: int, dtype: Any) -> Path:
    """Write Megatron's two files of one document, with a token in its middle that is no byte."""
    content = np.full(tokens, ord("a"), dtype)
    content[tokens // 2] = 300
    prefix = folder / "text"
    prefix.with_suffix(".bin").write_bytes(content.tobytes())
    blocks = index_bytes(1, content.dtype, lambda: [np.array([tokens])])
    prefix.with_suffix(".idx").write_bytes(b"".join(blocks))
    return prefix


def test_the_first_rank_cannot_write_its_metrics(data: Path, tmp_path: Path) -> None:
    """The step after it, or the save, lets the others know."""
    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (700, 700))
    content = stage_data(data, layout={"tp": 2}, checkpoint={"every": 100})
    stage = write_stage(tmp_path, content)
    done = subprocess.run(
        command(stage), env=environment(), preexec_fn=limits,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert_told_once(done.stderr, f"{tmp_path / 'metrics.jsonl'}: writing at byte ")
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1
    train(stage)
    assert saved(stage, 6)
