"""What one rank meets alone is told once, in a line, and ends all: nobody hangs or complains."""

import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stage_runs import (
    MODEL,
    command,
    environment,
    make_data,
    saved,
    stage_data,
    train,
    write_stage,
)

from flmgrow.trainer.data.indexed import index_bytes, read_index


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def assert_told_once(told: str, error: str) -> None:
    lines = [line for line in told.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
    assert error in lines[0]
    assert "Traceback" not in told


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told_of"),
    [
        ({"optimizer": {"beta2": 0.9}}, "optimizer.beta2 is 0.9, rank 0 has 0.95"),
        ({"data": {"teacher": None}}, "data.teacher.files is None, rank 0 has 60 propositions"),
    ],
)
def test_ranks_that_begin_differently(
    data: Path, tmp_path: Path, changes: dict[str, Any], told_of: str
) -> None:
    """As where each node has its own stage file: sums of their gradients would mean nothing."""
    layout = {"layout": {"tp": 2}}
    content = stage_data(data, **layout)
    stages = [write_stage(tmp_path, content), tmp_path / "other.yaml"]
    stages[1].write_text(yaml.safe_dump(stage_data(data, **layout, **changes)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "flmgrow.trainer", str(stage)],
            env={**environment(), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE, text=True,
        )
        for rank, stage in enumerate(stages)
    ]  # fmt: skip
    told = [rank.communicate(timeout=900)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert_told_once(told[0], f"rank 1: {told_of}")
    assert told[1] == ""


@pytest.mark.slow
def test_event_files_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    content = stage_data(data, layout={"tp": 2}, log={"tensorboard": "file/board"})
    told = train(write_stage(tmp_path, content), expect=4)
    assert_told_once(told, f"{tmp_path / 'file/board'}: writing failed: Not a directory")


@pytest.mark.slow
def test_a_vocabulary_that_is_too_small_names_the_file(data: Path, tmp_path: Path) -> None:
    stage = write_stage(tmp_path, stage_data(data, model={**MODEL, "vocab_size": 200}))
    assert_told_once(train(stage, expect=2), f"{stage}: the tokenizer has 257 ids, the model 200")


def test_a_device_for_each_rank() -> None:
    code = (
        "import torch; from flmgrow.trainer.megatron import model\n"
        "for seen, place in ((1, 3), (4, 3), (4, 4)):\n"
        "    torch.cuda.device_count = lambda: seen\n"
        "    print(model._own_device(place), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.stdout == "0\n3\n"
    assert "UsageError: rank 4 of its node: sees 4 GPUs" in done.stderr


@pytest.mark.slow
def test_the_first_rank_cannot_write_its_metrics(data: Path, tmp_path: Path) -> None:
    """The step after it, or the save, lets the others know."""
    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (700, 700))
    content = stage_data(data, layout={"tp": 2}, checkpoint={"every": 100})
    stage = write_stage(tmp_path, content)
    done = subprocess.run(
        command(stage), env=environment(), preexec_fn=limits,
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert_told_once(done.stderr, f"{tmp_path / 'metrics.jsonl'}: writing at byte ")
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1
    train(stage)
    assert saved(stage, 6)
