"""Checkpoints are evaluated by the harness, side by side, once; and what cannot be is told."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import evaluated as harness_alone
from answering import few_tasks
from commands import accepted, check_lines, flmgrow, names, refused
from hub_places import hub_at, upload
from pico import CONFIGS, make_checkpoint
from speakers import make_named

import flmgrow as package
from flmgrow.evaluation.results import newest_file
from flmgrow.evaluation.scoring import Question, scores
from flmgrow.evaluation.tasks import manager
from flmgrow.hub.evaluation import read_scores
from flmgrow.scores import _open, _subjects

TEXTS = ("the first text", "another one, longer than that", "text: 3\n")
BITS = "bits-per-byte-texts"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two checkpoints as a run has them, a text, and questions like ARC's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manager, "task_manager", lambda *given, **_: few_tasks(*given))
    config = replace(CONFIGS["llama"], vocab=257, max_positions=64)
    for number, name in enumerate(("01-small", "02-large")):
        make_checkpoint(tmp_path / "run" / name / "checkpoints", config, seed=number)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    Path("texts.jsonl").write_text(lines)
    make_questions(Path("data/arc_challenge"), {"train": 30, "test": 7})
    return tmp_path


def make_questions(folder: Path, counts: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    for split, count in counts.items():
        rows = [
            {
                "id": f"{split}-{number}",
                "question": f"{number}?",
                "choices": {"text": ["yes", f"no {number}"], "label": ["A", "B"]},
                "answerKey": "AB"[number % 2],
            }
            for number in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def evaluated(*words: object, source: str = "run", tasks: str = "bits-per-byte:texts.jsonl") -> Any:
    asked = (source, "--tasks", tasks, "--out", "out", "--tokenizer", "bytes", "--json")
    return json.loads(accepted("eval", *asked, *words).out)


def likelihood(checkpoint: Path, text: str) -> float:
    """The log-likelihood of a text, computed apart from the evaluation."""
    model = package.load_model(checkpoint, dtype=torch.float32)
    (found,) = scores(model, [Question((256,), tuple(text.encode()))])
    return found.log_likelihood


def test_a_run_is_evaluated_stage_beside_stage_and_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = evaluated("--dtype", "float32")
    assert [each["name"] for each in told["checkpoints"]] == ["01-small", "02-large"]
    for each in told["checkpoints"]:
        (score,) = each["scores"]
        nats = [likelihood(place / "run" / each["name"] / "checkpoints", text) for text in TEXTS]
        size = len("".join(TEXTS))
        assert score["value"] == pytest.approx(-sum(nats) / math.log(2) / size, rel=1e-5)
        assert score["error"] > 0
    head, _, *rows = (place / "out" / "table.md").read_text().splitlines()
    assert head.replace("|", " ").split()[3:] == ["01-small", "02-large"]
    assert BITS in rows[-1]
    # The same request is not computed again; and no other finds its answers here.
    monkeypatch.setattr("flmgrow.evaluation.evaluating.language_model", None)
    assert evaluated("--dtype", "float32") == told
    how = ("--tasks", "bits-per-byte:texts.jsonl", "--out", "out", "--tokenizer", "bytes")
    for words, said in (
        (["--dtype", "float32", "--seed", 1], "seed: 0 there, 1 here"),
        (["--dtype", "float32", "--limit", 2], "limit: none there, 2 here"),
        (["--dtype", "float64"], "checkpoint.dtype: float32 there, float64 here"),
    ):
        pattern = f"out/01-small: .*another request: {said}"
        refused(5, pattern, "eval", "run", *how, *words, place=place)
    file = newest_file(Path("out/02-large"))
    whole = file.read_text()
    edited = whole.replace('"bits_per_byte,none": ', '"bits_per_byte,none": 1')
    for content, said in ((whole[:900], "is not JSON"), (edited, "is not what was written")):
        file.write_text(content)
        refused(3, f"{file}: .*{said}", "eval", "run", *how, "--dtype", "float32", place=place)
    shutil.rmtree("out/02-large")
    with pytest.raises(TypeError):  # now there is something to compute
        evaluated("--dtype", "float32")


@pytest.mark.slow
def test_result_files_are_the_harness_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from lm_eval.utils import (
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
    )

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")

    tasks = "arc_challenge,bits-per-byte:texts.jsonl"
    evaluated("--data", "data", "--shots", 2, source="run/01-small/checkpoints", tasks=tasks)
    files = [str(path) for path in Path("out").rglob("*")]
    (results,) = get_results_filenames(files)
    assert len(get_sample_results_filenames(files)) == 2
    content = json.loads(Path(results).read_text())
    assert content["n-shot"] == {"arc_challenge": 2, BITS: 0}
    assert content["task_hashes"].keys() == content["configs"].keys()
    (samples,) = Path("out/01-small").glob("samples_arc_challenge_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(7))
    assert {"acc", "acc_norm", "resps", "arguments", "prompt_hash"} <= lines[0].keys()
    assert "|arc_challenge " in make_table(content)
    # The same questions as the harness asks by itself, word for word.
    asked = harness_alone(lambda _: "", "arc_challenge", data=Path("data"), num_fewshot=2)
    hashes = [sample["prompt_hash"] for sample in asked["samples"]["arc_challenge"]]
    assert [line["prompt_hash"] for line in lines] == hashes
    with_theirs = datasets.load_dataset("json", data_files=str(samples), split="train")
    assert with_theirs["doc_id"][:] == list(range(7))
    kept = read_scores(Path(results).read_bytes(), "x")
    assert [(each.task, each.metric) for each in kept] == [
        ("arc_challenge", "acc"),
        ("arc_challenge", "acc_norm"),
        (BITS, "bits_per_byte"),
    ]


class Stop:
    """Lets a model answer some questions, and then be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int | None) -> None:
        from flmgrow.evaluation.answers import Answers

        keep = Answers.keep
        self.kept = 0

        def kept(answers: Answers, key: str, answer: Any) -> None:
            if key not in answers:
                if self.kept == after:
                    raise KeyboardInterrupt
                self.kept += 1
            keep(answers, key, answer)

        monkeypatch.setattr(Answers, "keep", kept)


def test_an_interrupted_evaluation_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"source": "run/01-small/checkpoints", "tasks": "arc_challenge"}
    words = ("--data", "data", "--shots", 1)
    with monkeypatch.context() as patch:
        Stop(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            evaluated(*words, **how)
    assert names(place / "out") == [".01-small.flmgrow"]
    with monkeypatch.context() as patch:
        rest = Stop(patch, after=None)
        found = evaluated(*words, **how)
    assert rest.kept == 2 * 7 - 4
    assert names(place / "out") == ["01-small", "table.md"]
    shutil.move("out", "once")
    assert evaluated(*words, **how) == found


def test_a_text_is_kept_once_it_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(model: Any, questions: list[Question], batch: Any, hear: Any) -> None:
        for number, score in enumerate(scores(model, questions[:-1], batch)):
            hear(number, score)
        raise KeyboardInterrupt

    how = {"source": "run/01-small/checkpoints", "tasks": "bits-per-byte:texts.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr("flmgrow.evaluation.native.scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluated(**how)
    rest = Stop(monkeypatch, after=None)
    evaluated(**how)
    assert rest.kept == 1


def test_a_checkpoint_that_changed_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Path("run/01-small/checkpoints")
    how = ("--tasks", "bits-per-byte:texts.jsonl", "--out", "out", "--tokenizer", "bytes")
    with monkeypatch.context() as patch:
        Stop(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            flmgrow("eval", checkpoint, *how)
    shutil.rmtree(checkpoint)
    shutil.copytree("run/02-large/checkpoints", checkpoint)
    outcome = flmgrow("eval", checkpoint, *how)
    assert outcome.code == 5
    check_lines(outcome.err, "holds answers of another checkpoint: .*--restart")
    accepted("eval", checkpoint, *how, "--restart")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--tasks", "bits-per-byte:no.txt"], 2, "task bits-per-byte: no.txt: no such file"),
        (["--tasks", "bits-per-byte"], 2, "of which text.*--tasks bits-per-byte:FILE"),
        (["--data", "nowhere"], 2, "--data nowhere: no such file or folder"),
        (["--beside", "nowhere"], 2, "--beside nowhere: .*wanted paper"),
        (["--beside", "texts.jsonl"], 3, "texts.jsonl: .*cut short, or is another kind"),
        (["--beside", "data"], 2, "data: holds no results"),
        (["--out", "texts.jsonl"], 2, "texts.jsonl: is no folder"),
        (["--out", "s3://bucket/scores"], 2, "s3://bucket/scores: is in an object store"),
        (["--backend", "x"], 2, "--backend x: unknown"),
        (["--dtype", "x"], 2, "--dtype x: unknown"),
    ],
)
def test_wrong_requests_are_refused_at_once(
    words: list[str], code: int, said: str, place: Path
) -> None:
    usual = ["--tasks", "iq", "--out", "out"]
    refused(code, said, "eval", "run/01-small/checkpoints", *usual, *words, place=place)


def test_checkpoints_are_called_by_what_tells_them_apart() -> None:
    given = ("a/01-s/checkpoints", "b/01-s/checkpoints", "b/02-l/start", "b/02-l/checkpoints", "c")
    paths = [Path(each) for each in given]
    assert [each.name for each in _subjects(paths[1:], _open)] == [
        "01-s", "02-l/start", "02-l", "c",
    ]  # fmt: skip
    assert [each.name for each in _subjects(paths[:2], _open)] == ["a/01-s", "b/01-s"]


def test_a_checkpoint_given_twice_is_refused(place: Path) -> None:
    once = "run/01-small/checkpoints"
    refused(2, f"{once}: is to be evaluated twice", "eval", once, once, "--tasks", "iq", "--out",
            "out", place=place)  # fmt: skip


def test_a_missing_data_set_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: 1 / 0)
    asked = ("--tasks", "iq_boolq", "--out", "out", "--tokenizer", "bytes", "--data", "data")
    outcome = flmgrow("eval", "run/01-small/checkpoints", *asked)
    assert outcome.code == 2
    said = (
        "super_glue, boolq: not found in data/super_glue/boolq, nor in the cache .*HF_HUB_OFFLINE"
    )
    check_lines(outcome.err, said)
    assert "test.jsonl, into DIR/super_glue/boolq, and pass --data DIR" in outcome.err
    assert not Path("out").exists()


def test_without_the_harness_its_extra_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmgrow.evaluation.backends.find_spec", lambda _: None)
    usual = ("--tasks", "iq", "--out", "out", "--tokenizer", "bytes")
    said = "needs the package lm_eval.*pip install 'flmgrow\\[eval\\]'"
    refused(2, said, "eval", "run", *usual, place=place)


def test_a_model_on_the_hub_is_evaluated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_at(place, monkeypatch) as hub:
        upload(hub, make_named(place / "model"))
        there = evaluated(source="hf://org/model")
    monkeypatch.setattr("flmgrow.evaluation.evaluating.language_model", None)
    assert evaluated(source="model") == there  # the same content, so its results are read


@pytest.mark.slow
def test_processes_of_torchrun_share_an_evaluation(place: Path) -> None:
    """The first one tells and writes; what it writes is what one alone does."""
    tasks = "bits-per-byte:texts.jsonl,iq_full_repeating"
    words = ["run", "--tasks", tasks, "--tokenizer", "bytes", "--limit", "3", "--shots", "0"]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    ranks = []
    for rank in ("0", "1"):
        place_of_rank = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "flmgrow", "eval", *words, "--out", "two"],
                env={**os.environ, **place_of_rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [rank.communicate(timeout=900) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert told[1] == ("", "")
    accepted("eval", *words, "--out", "one")
    assert told[0][0] == (place / "one" / "table.md").read_text()
    assert names(place / "two") == names(place / "one") == ["01-small", "02-large", "table.md"]
