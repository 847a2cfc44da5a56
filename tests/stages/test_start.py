"""A run may begin with a model that exists: its sizes are the model's, and are never said twice."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import accepted, flmgrow
from damage import edit_all
from hub_places import hub_at, upload
from repository import ROOT
from safetensors.torch import load_file, save_file
from sampling import first
from stage_runs import make_data, metrics, write_schedule, write_stage
from trained_here import carried_out, small, trained

from flmgrow.cli import run as cli
from flmgrow.formats.history.manifest import family, read_manifest
from flmgrow.formats.opening import open_checkpoint
from flmgrow.stages.curves import read_runs

LARGER = {
    "name": "larger",
    "model": {"num_layers": 3},
    "growth": {"method": "zero"},
    "training": {"steps": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in each format, of an unusual kind: all of it comes from there."""
    folder = tmp_path_factory.mktemp("models")
    content = small(data, training={"steps": 3}, checkpoint={"format": "megatron"})
    kind = {"normalization": "rmsnorm", "activation": "swiglu", "linear_bias": False}
    content["model"] = {**content["model"], **kind, "tied": False, "vocab_size": 257}
    trained(write_stage(folder, content))
    (folder / "checkpoints").rename(folder / "legacy")
    accepted("reshard", folder / "legacy", folder / "dist", "--format", "torch_dist")
    accepted("export", folder / "legacy", folder / "hf")
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "launch", carried_out)


def schedule_of(data: Path, start: str, *later: dict[str, Any], **first: Any) -> dict[str, Any]:
    return {
        "data": {"sequence_length": 32, "corpora": [{"path": str(data / "corpus")}]},
        "training": {"batch": 8, "micro_batch": 4},
        "learning_rate": {"peak": 1e-3},
        "stages": [{"name": "first", "start": start, "training": {"steps": 2}, **first}, *later],
    }


@pytest.mark.parametrize(("kind", "first"), first(1, [("hf", 0), ("legacy", 3), ("dist", 3)]))
def test_a_stage_begins_with_a_model_and_the_next_one_grows_it(
    data: Path, models: Path, tmp_path: Path, kind: str, first: int
) -> None:
    """From a path that is seen from the schedule's file; a Hugging Face folder counts from 0."""
    schedule = write_schedule(models, schedule_of(data, kind, LARGER))
    words = ("run", schedule, "--out", tmp_path / "run")
    shown = accepted(*words, "--dry-run").out
    assert f"start       {models / kind}: {'all that' if first else 'weights only'}" in shown
    assert not (tmp_path / "run").exists()
    done = flmgrow(*words)
    assert done.code == 0, done.err
    folders = [tmp_path / "run" / name for name in ("01-first", "02-larger")]
    steps = [record for folder in folders for record in metrics(folder / "stage.yaml")]
    assert [record["step"] for record in steps] == list(range(first + 1, first + 5))
    assert steps[0]["samples"] == 8 * (first + 1)
    for folder in folders:
        manifest = read_manifest(folder / "start")
        assert manifest is not None
        assert manifest.receipt is not None
        assert manifest.receipt.equal
    with open_checkpoint(folders[1] / "checkpoints") as opened:
        assert (opened.config.layers, opened.config.norm) == (3, "rmsnorm")
        assert family(opened)[-1].name == "larger"
    assert flmgrow(*words).err == ""
    assert [len(run.stages) for run in read_runs([tmp_path / "run"])] == [2]


@pytest.mark.parametrize(
    ("kind", "begin", "first"), [("hf", None, 0), ("dist", None, 3), ("legacy", "anew", 0)]
)
def test_the_first_stage_may_grow_its_start_at_once(
    data: Path, models: Path, tmp_path: Path, kind: str, begin: str | None, first: int
) -> None:
    """From weights alone, with the optimizer's state grown, or without what is there of it."""
    grows = {key: LARGER[key] for key in ("model", "growth")}
    checkpoint = {"checkpoint": {"begin": begin}} if begin else {}
    content = schedule_of(data, kind, **grows, **checkpoint)
    words = ("run", write_schedule(models, content), "--out", tmp_path / "run")
    shown = accepted(*words, "--dry-run").out
    assert "growth      depth by zero; TP1 x PP1 -> TP1 x PP1" in shown
    expands, verifies, trains = (line for line in shown.splitlines() if line.startswith("$ "))
    assert expands.startswith(f"$ flmgrow expand {models / kind} {tmp_path}/run/01-first/start")
    assert ("--no-optimizer" in expands) is (begin is not None)
    assert verifies.startswith("$ flmgrow verify")
    assert trains.startswith("$ flmgrow train")
    done = flmgrow(*words)
    assert done.code == 0, done.err
    stage = tmp_path / "run" / "01-first"
    assert [each["step"] for each in metrics(stage / "stage.yaml")] == [first + 1, first + 2]
    manifest = read_manifest(stage / "start")
    assert manifest is not None
    assert manifest.receipt is not None
    assert manifest.receipt.equal
    with open_checkpoint(stage / "start") as start, open_checkpoint(stage / "checkpoints") as saved:
        assert ("optimizer" in str(start.carried)) is (first > 0)
        assert [(each.config.layers, each.config.norm) for each in (start, saved)] == [
            (3, "rmsnorm")
        ] * 2
    assert flmgrow(*words).err == ""
    content["stages"][0]["growth"] = {"method": "zero", "seed": 7}
    refused = flmgrow("run", write_schedule(models, content), "--out", tmp_path / "run")
    assert "01-first/growth.yaml: seed is" in refused.err


def test_what_the_first_stage_cannot_grow_is_refused(data: Path, models: Path) -> None:
    """Sizes alone are a contradiction; growth needs a start, whose masks are open."""
    content = schedule_of(data, "hf", model={"num_layers": 3})
    told = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert "layers is 2, the stage file says 3" in told.err
    assert "to grow it at once, give the first stage a growth: section" in told.err
    content = schedule_of(data, "hf", model={"num_layers": 1}, growth={"method": "zero"})
    told = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert told.code == 2
    assert "stage first: model.num_layers" in told.err
    masked = models / "masked"
    if not masked.exists():
        accepted("expand", models / "dist", masked, "--num-layers", 3, "--ramp-steps", 9)
    content = schedule_of(data, "masked", model={"num_layers": 4}, growth={"method": "zero"})
    told = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert told.code == 2
    assert "start: has not opened its own masks (depth at 0)" in told.err


def test_counting_may_begin_anew(data: Path, models: Path, tmp_path: Path) -> None:
    """On other data, which samples that were counted on would not allow."""
    content = schedule_of(data, "dist", checkpoint={"begin": "anew"})
    content["data"]["sequence_length"] = 64
    words = ("run", write_schedule(models, content), "--out", tmp_path / "run")
    assert " --no-optimizer" in accepted(*words, "--print-commands").out
    done = flmgrow(*words)
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run" / "01-first" / "stage.yaml")
    assert [record["tokens"] for record in found] == [512, 1024]


def test_a_model_on_the_hub(
    data: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_at(tmp_path / "hub", monkeypatch) as hub:
        upload(hub, models / "hf", "org/small")
        content = schedule_of(data, "hf://org/small")
        words = ("run", write_schedule(tmp_path, content), "--out", tmp_path / "run")
        assert "hf://org/small: weights only" in accepted(*words, "--dry-run").out
        done = flmgrow(*words)
        assert done.code == 0, done.err


def test_its_model_is_said_by_the_start_alone(data: Path, models: Path, tmp_path: Path) -> None:
    content = schedule_of(data, "hf")
    content["model"] = {"num_layers": 5, "hidden_size": 32}
    outcome = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert outcome.code == 2
    assert (
        f"stage first: model: of {models / 'hf'} layers is 2, the stage file says 5" in outcome.err
    )
    content["model"] = {"num_layers": 2, "hidden_size": 32}
    accepted("run", write_schedule(models, content), "--dry-run")


def test_what_a_stage_file_loads_is_a_start(data: Path, models: Path) -> None:
    wanted = accepted("run", write_schedule(models, schedule_of(data, "hf")), "--dry-run").out
    content = schedule_of(data, "hf")
    content["stages"][0] |= {"start": None, "checkpoint": {"load": "hf"}}
    assert accepted("run", write_schedule(models, content), "--dry-run").out == wanted


def test_the_guides_examples_start_with_a_model(models: Path, tmp_path: Path) -> None:
    """The second one says the stages alone: that one grows at once."""
    guide = (ROOT / "docs" / "guides" / "run.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    text, stages = (each for each in examples if "start: models/llama" in each)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama").symlink_to(models / "hf")
    whole = yaml.safe_load(text)
    for content in (whole, {**whole, **yaml.safe_load(stages)}):
        path = write_schedule(tmp_path, content)
        shown = accepted("run", path, "--out", tmp_path / "run", "--dry-run").out
        assert "6 layers, hidden 32" in shown
        assert "flmgrow expand" in shown


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"start": 3}, "start: is 3, wanted a folder, or a model on the Hub"),
    "nothing there": ({"start": "missing"}, "missing: no such folder"),
    "all of weights": (
        {"checkpoint": {"begin": "continue"}},
        "checkpoint.begin is continue, but a Hugging Face folder has weights only",
    ),
    "two of them": ({"checkpoint": {"load": "dist"}}, "checkpoint.load: is 'dist', but start is"),
    "no start": ({"start": None, "checkpoint": {"begin": "anew"}}, "the stage has no start"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_start_that_is_none_is_refused(data: Path, models: Path, case: str) -> None:
    changes, message = WRONG[case]
    content = schedule_of(data, "hf")
    content["stages"][0] |= changes
    outcome = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert outcome.code in (2, 3)
    assert message in outcome.err


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"start": "hf"}, "start"), ({"checkpoint": {"begin": "anew"}}, "checkpoint.begin")],
)
def test_only_the_first_stage_starts(
    data: Path, models: Path, changes: dict[str, Any], key: str
) -> None:
    content = schedule_of(data, "hf", {**LARGER, **changes})
    outcome = flmgrow("run", write_schedule(models, content), "--dry-run")
    assert f"stage larger: {key}: a later stage begins with what grew" in outcome.err


def test_another_start_after_the_run_has_begun_is_refused(
    data: Path, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    schedule = write_schedule(models, schedule_of(data, "hf"))
    accepted("run", schedule, "--out", out, "--print-commands")
    source = yaml.safe_load((out / "01-first" / "start.yaml").read_text())
    assert (source["start"], source["begin"]) == (str(models / "hf"), "anew")
    (out / "01-first" / "start").mkdir()
    write_schedule(models, schedule_of(data, "dist"))
    outcome = flmgrow("run", schedule, "--out", out, "--dry-run")
    assert outcome.code == 2
    assert "01-first/start.yaml: begin is anew, the schedule says continue" in outcome.err


def test_what_is_vouched_for_goes_to_the_commands(data: Path, models: Path, tmp_path: Path) -> None:
    checkpoint = {"ignore_fields": ["odd_*"], "ignore_arguments": ["a b"]}
    config = json.loads((models / "hf" / "config.json").read_text())
    odd = tmp_path / "odd"
    odd.mkdir()
    for path in (models / "hf").iterdir():
        (odd / path.name).write_bytes(path.read_bytes())
    (odd / "config.json").write_text(json.dumps({**config, "odd_gate": 3}))
    content = schedule_of(data, str(odd))
    words = ("run", write_schedule(tmp_path, content), "--out", tmp_path / "run")
    refused = flmgrow(*words, "--dry-run")
    assert 'say checkpoint.ignore_fields: ["odd_gate"]' in refused.err
    content["stages"][0]["checkpoint"] = checkpoint
    write_schedule(tmp_path, content)
    lines = accepted(*words, "--print-commands").out.splitlines()
    for line in lines[:2]:
        assert line.endswith("--ignore-arg 'a b' --ignore-field 'odd_*'")


def test_arguments_that_are_given_go_to_the_commands(
    data: Path, models: Path, tmp_path: Path
) -> None:
    content = schedule_of(data, str(models / "dist"))
    content["stages"][0]["checkpoint"] = {"set_arguments": ["seq_length=8"]}
    words = ("run", write_schedule(tmp_path, content), "--out", tmp_path / "run")
    lines = accepted(*words, "--print-commands").out.splitlines()
    assert "--set-arg seq_length=8" in lines[0]


def test_a_start_without_arguments_gets_them_from_a_file(
    data: Path, models: Path, tmp_path: Path
) -> None:
    """As the hint says; the stage trains what is laid out with them, and needs the file no more."""
    start = Path(shutil.copytree(models / "legacy", tmp_path / "bare"))
    edit_all(start, lambda content: content.pop("args"))
    for sums in start.rglob("flmgrow_training.json"):
        sums.unlink()
    content = schedule_of(data, "bare")
    words = ("run", write_schedule(tmp_path, content), "--out", tmp_path / "run")
    refused = flmgrow(*words, "--dry-run")
    assert refused.code == 3
    assert "say checkpoint.args_from with" in refused.err
    given = tmp_path / "config.json"
    content["stages"][0]["checkpoint"] = {"args_from": "config.json", "begin": "anew"}
    write_schedule(tmp_path, content)
    assert f"checkpoint.args_from {given}: no such file" in flmgrow(*words, "--dry-run").err
    given.write_bytes((models / "hf" / "config.json").read_bytes())
    lines = accepted(*words, "--print-commands").out.splitlines()
    assert [f"--args-from {given}" in line for line in lines[:3]] == [True, True, False]
    accepted(*words)
    assert "args_from" not in (tmp_path / "run" / "01-first" / "stage.yaml").read_text()
    with (
        open_checkpoint(tmp_path / "run" / "01-first" / "checkpoints") as after,
        open_checkpoint(models / "legacy") as before,
    ):
        assert after.config == before.config


def test_a_start_is_told_without_going_down_and_up_again(
    data: Path, models: Path, tmp_path: Path
) -> None:
    """But where that leads elsewhere: above a link lies what is above the folder it leads to."""
    folder, link = tmp_path / "real" / "deep", tmp_path / "link"
    folder.mkdir(parents=True)
    link.symlink_to(folder)
    (folder.parent / "model").symlink_to(models / "legacy")
    content = schedule_of(data, "../model")
    for place, told in ((folder, folder.parent / "model"), (link, link / ".." / "model")):
        done = flmgrow("run", write_schedule(place, content), "--out", tmp_path / "r", "--dry-run")
        assert (done.code, f"start       {told}: all that it has" in done.out) == (0, True)


def test_only_the_first_stage_says_how_a_run_begins(data: Path, tmp_path: Path) -> None:
    for section in ({"args_from": "x.yaml"}, {"begin": "anew"}):
        content = schedule_of(data, "bare", {**LARGER, "checkpoint": section})
        told = flmgrow(
            "run", write_schedule(tmp_path, content), "--out", tmp_path / "r", "--dry-run"
        )
        assert told.code in (2, 3)
    content["checkpoint"] = {"args_from": "x.yaml"}
    told = flmgrow("run", write_schedule(tmp_path, content), "--out", tmp_path / "r", "--dry-run")
    assert "checkpoint.args_from: holds for one stage only" in told.err
    del content["checkpoint"]
    content["start"] = str(tmp_path)
    told = flmgrow("run", write_schedule(tmp_path, content), "--out", tmp_path / "r", "--dry-run")
    assert "start: holds for one stage only" in told.err


def test_a_head_beside_a_shared_table_is_kept_as_the_hint_says(
    data: Path, models: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(models / "hf", both, ignore=shutil.ignore_patterns("flmgrow.json"))
    config = json.loads((both / "config.json").read_text())
    (both / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(both / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, both / "model.safetensors")
    content = schedule_of(data, str(both))
    words = ("run", write_schedule(tmp_path, content), "--out", tmp_path / "run")
    refused = flmgrow(*words, "--dry-run")
    assert refused.code == 3
    assert "which checkpoint.untie: true keeps" in refused.err
    assert "which checkpoint.untie: false keeps" in refused.err
    for untie in (True, False):
        content["stages"][0]["checkpoint"] = {"untie": untie}
        write_schedule(tmp_path, content)
        told = accepted("run", *words[1:3], tmp_path / f"run-{untie}", "--dry-run").out
        assert ("tied embeddings" in told) is not untie
        commands = accepted("run", *words[1:3], tmp_path / f"run-{untie}", "--print-commands").out
        lay_out, verify, *_ = (shlex.split(line)[1:] for line in commands.splitlines())
        accepted(*lay_out)
        accepted(*verify)
        with open_checkpoint(tmp_path / f"run-{untie}" / "01-first" / "start") as opened:
            assert opened.config.tied is not untie
