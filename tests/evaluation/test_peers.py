"""However many processes share the questions, the scores are the same; and they end alike."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluating_rank
import pytest
from speakers import make_named, make_speaker

from flmgrow.errors import UsageError
from flmgrow.evaluation.peers import ALONE, meet

COUNT = 5


def make_data(folder: Path) -> Path:
    """A few questions in the form of ARC's; their number is odd, so that one rank has one more."""
    rows = [
        {
            "id": str(number),
            "question": f"th{number}e",
            "choices": {"text": ["the", f"a{number}", "thth"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number in range(2 * COUNT)
    ]
    for split, own in (("train", rows[:COUNT]), ("test", rows[COUNT:])):
        path = folder / evaluating_rank.TASK / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


def run_ranks(size: int, *arguments: object, **environment: str) -> list[tuple[int, str, str]]:
    """Run the processes as torchrun does; return exit code, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, evaluating_rank.__file__, *map(str, arguments)]
    started = []
    for rank in range(size):
        said = {
            **os.environ, **environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                command, env=said, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    told = [process.communicate(timeout=900) for process in started]
    return [(process.returncode, *each) for process, each in zip(started, told, strict=True)]


def likelihoods(found: dict[str, Any]) -> dict[int, list[float]]:
    """The log-likelihood of each choice of each question."""
    samples = found["samples"][evaluating_rank.TASK]
    return {each["doc_id"]: [float(pair[0][0]) for pair in each["resps"]] for each in samples}


@pytest.mark.slow
def test_two_processes_score_as_one_does(tmp_path: Path) -> None:
    folder, data = make_named(tmp_path / "hf"), make_data(tmp_path / "data")
    alone = evaluating_rank.evaluated(folder, data)
    assert alone is not None
    done = run_ranks(2, folder, data, tmp_path / "answers")
    assert [code for code, _, _ in done] == [0, 0], done
    assert done[1][1] == ""
    found = json.loads(done[0][1])
    task = evaluating_rank.TASK
    assert found["results"][task]["acc,none"] == alone["results"][task]["acc,none"]
    wanted = likelihoods(alone)
    assert likelihoods(found).keys() == wanted.keys() == set(range(COUNT))
    for number, values in likelihoods(found).items():
        assert values == pytest.approx(wanted[number], abs=1e-4)
    # What both have kept, one process finds.
    kept = sum(path.stat().st_size for path in (tmp_path / "answers").iterdir())
    again = evaluating_rank.evaluated(folder, data, tmp_path / "answers")
    assert again is not None
    assert likelihoods(again) == likelihoods(found)
    assert sum(path.stat().st_size for path in (tmp_path / "answers").iterdir()) == kept


@pytest.mark.slow
def test_processes_let_one_of_them_export(tmp_path: Path) -> None:
    folder, data = make_speaker(tmp_path / "hf"), make_data(tmp_path / "data")
    done = run_ranks(
        2, folder, data, tmp_path / "answers", BACKEND="hf", XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    assert [code for code, _, _ in done] == [0, 0], done
    assert len(list((tmp_path / "cache/flmgrow/exported").iterdir())) == 1
    alone = evaluating_rank.evaluated(folder, data)
    assert alone is not None
    found, wanted = likelihoods(json.loads(done[0][1])), likelihoods(alone)
    assert found.keys() == wanted.keys() == set(range(COUNT))
    for number, values in found.items():
        assert values == pytest.approx(wanted[number], abs=1e-4)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    folder, data = make_named(tmp_path / "hf"), make_data(tmp_path / "data")
    done = run_ranks(2, folder, data, tmp_path / "answers", WRONG="1")
    assert [code for code, _, _ in done] == [UsageError.exit_code] * 2
    assert all("this rank alone cannot" in err for _, _, err in done)


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert meet() is ALONE


def test_processes_that_cannot_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="nothing says where they meet"):
        meet()
