"""A run that went wrong can be mended in its own folder: from a checkpoint on, and never silently.

All steps are carried out in the tests' own process.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import flmgrow
from stage_runs import make_data, metrics, write_schedule
from trained_here import MODEL, carried_out

from flmgrow.cli import run as cli
from flmgrow.formats.history.manifest import encode, read_manifest
from flmgrow.formats.history.parts import ELEMENTS
from flmgrow.stages import preparing
from flmgrow.stages.run_folder import RunFolder
from flmgrow.stages.schedule import read_schedule
from flmgrow.trainer.stage.changes import CHANGES, read_changes

LARGE = {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "launch", carried_out)


def schedule_of(data: Path, *stages: dict[str, Any], **common: Any) -> dict[str, Any]:
    """Return a schedule; the first stage has six steps, and each batch eight samples."""
    rate = {"peak": 3e-3, "warmup_samples": 8}
    return {
        "model": {**MODEL, "vocab_size": 257},
        "data": {"sequence_length": 32, "corpora": [{"path": str(data / "corpus")}]},
        "training": {"batch": 8, "micro_batch": 4},
        "checkpoint": {"every": 2},
        "guard": {"spike": 0.5, "window": 5},
        **common,
        "stages": [
            {"name": "small", "training": {"steps": 6}, "learning_rate": rate, **stages[0]},
            *stages[1:],
        ],
    }


def ran(folder: Path, content: dict[str, Any], *options: str) -> Any:
    """Write the schedule, and run it in that folder."""
    folder.mkdir(exist_ok=True)
    path = write_schedule(folder, content)
    return flmgrow("run", path, "--out", folder / "run", *options)


@pytest.fixture(scope="module")
def grown(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has diverged in its second stage."""
    folder = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "launch", carried_out)
        done = ran(folder, schedule_of(data, {}, second(peak=3.0)))
    assert done.code == 7, done.err
    (folder / "told").write_text(done.err)
    return folder


def second(**changes: Any) -> dict[str, Any]:
    peak, changed = changes.pop("peak", 3e-3), changes.pop("checkpoint", {})
    return {
        "name": "large",
        "model": LARGE,
        "growth": {"method": "mask", "ramp_steps": 2},
        "training": {"tokens": 6 * 8 * 32},
        "learning_rate": {"peak": peak, "warmup_samples": 24},
        "checkpoint": changed,
        **changes,
    }


def test_after_a_divergence_the_hint_leads_on(data: Path, grown: Path, tmp_path: Path) -> None:
    """First to the refusal's own hint, which names the key; earlier stages are left alone."""
    folder = Path(shutil.copytree(grown, tmp_path / "copied"))
    assert "say checkpoint.change_at: " in (grown / "told").read_text()
    small = (folder / "run" / "01-small" / "metrics.jsonl").read_bytes()
    refused = ran(folder, schedule_of(data, {}, second()))
    assert refused.code == 2
    assert "02-large/stage.yaml: learning_rate.peak is 3.0, the schedule says 0.003" in refused.err
    assert "say checkpoint.change_at in this stage, with an iteration" in refused.err
    (begin,) = re.findall(r"or (\d+) for its begin", refused.err)
    mended = second(checkpoint={"change_at": int(begin)})
    done = ran(folder, schedule_of(data, {}, mended))
    assert done.code == 0, done.err
    assert (folder / "run" / "01-small" / "metrics.jsonl").read_bytes() == small
    found = metrics(folder / "run" / "02-large" / "stage.yaml")
    assert [record["step"] for record in found] == list(range(7, 13))
    (change,) = read_changes(folder / "run" / "02-large" / CHANGES)
    assert (change.step, change.key, change.before, change.after) == (
        6, "learning_rate.peak", 3.0, 0.003,
    )  # fmt: skip
    assert ran(folder, schedule_of(data, {}, mended)).err == ""  # it is done


@pytest.mark.slow
def test_another_batch_moves_what_comes_after(data: Path, tmp_path: Path) -> None:
    """The plan follows what was done: the next stage begins where this one really ended."""
    tokens = {"training": {"tokens": 6 * 8 * 32}}
    content = schedule_of(data, tokens, second())
    assert ran(tmp_path, content, "--until", "small").code == 0
    changed = schedule_of(
        data,
        {"training": {"tokens": 6 * 8 * 32, "batch": 4}, "checkpoint": {"change_at": 2}},
        second(),
    )
    shown = json.loads(ran(tmp_path, changed, "--dry-run", "--json").out)["stages"]
    assert [(stage["first_iteration"], stage["steps"]) for stage in shown] == [(0, 10), (10, 6)]
    done = ran(tmp_path, changed)
    assert done.code == 0, done.err
    out = tmp_path / "run"
    ends = [metrics(out / name / "stage.yaml")[-1]["step"] for name in ("01-small", "02-large")]
    assert ends == [10, 16]
    shutil.rmtree(out / "01-small" / "checkpoints")
    assert ran(tmp_path, changed).err == ""


def test_a_stage_that_another_grew_from_stays_what_it_is(
    data: Path, grown: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(grown, tmp_path / "copied"))
    content = schedule_of(
        data, {"optimizer": {"beta1": 0.8}, "checkpoint": {"change_at": 4}}, second(peak=3.0)
    )
    refused = ran(folder, content)
    assert refused.code == 2
    assert "01-small/stage.yaml: optimizer.beta1 is 0.9, the schedule says 0.8" in refused.err
    assert "hint: this stage has ended: leave it what it was" in refused.err


def test_its_model_never_changes(data: Path, tmp_path: Path) -> None:
    assert ran(tmp_path, schedule_of(data, {})).code == 0
    content = schedule_of(data, {"checkpoint": {"change_at": 2}})
    content["model"]["activation"] = "swiglu"
    refused = ran(tmp_path, content)
    assert "model.activation is gelu, the schedule says swiglu" in refused.err


@pytest.mark.parametrize("key", ["begin", "change_at"])
def test_what_holds_for_one_stage_is_said_there(data: Path, tmp_path: Path, key: str) -> None:
    said = {"checkpoint": {key: 0 if key == "change_at" else "anew"}}
    refused = ran(tmp_path, schedule_of(data, {}, **said), "--dry-run")
    assert (refused.code, f"checkpoint.{key}: holds for one stage only" in refused.err) == (2, True)


def test_another_function_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    stacked = second(model={"num_layers": 4}, growth={"method": {"depth": "stack"}})
    for options in ((), ("--dry-run",)):
        refused = ran(tmp_path, schedule_of(data, {}, stacked), *options)
        assert refused.code == 2
        assert "stage large: growth.method: depth by stack changes the function" in refused.err
        assert "growth.accept: changed-function" in refused.err
    assert not (tmp_path / "run").exists()
    wrong = second(growth={"method": "mask", "accept": "anything"})
    refused = ran(tmp_path, schedule_of(data, {}, wrong), "--dry-run")
    assert "growth.accept: is 'anything', wanted changed-function" in refused.err


@pytest.mark.slow
def test_another_function_that_is_accepted_is_recorded(data: Path, tmp_path: Path) -> None:
    """But not damage: all that verification looks at beside the function must hold."""
    growth = {"method": {"depth": "stack"}, "accept": "changed-function"}
    stacked = second(model={"num_layers": 4}, growth=growth)
    content = schedule_of(data, {}, stacked, guard={})
    shown = ran(tmp_path, content, "--dry-run")
    assert "changes the function, which is accepted" in shown.out
    done = ran(tmp_path, content)
    assert done.code == 0, done.err
    assert "note: another function, which growth.accept allows: the run goes on" in done.err
    start = tmp_path / "run" / "02-large" / "start"
    manifest = read_manifest(start)
    assert manifest is not None
    assert manifest.receipt is not None
    assert manifest.receipt.equal is False
    assert ran(tmp_path, content).err == ""
    lines = ran(tmp_path, content, "--print-commands").out.splitlines()
    assert [line.endswith(" || [ $? -eq 1 ]") for line in lines] == [False, False, True, False]
    checks = [
        check.changed(passed=False) if check.name == ELEMENTS else check
        for check in manifest.receipt.checks
    ]
    receipt = manifest.receipt.changed(checks=checks)
    (start / "flmgrow.json").write_bytes(encode(manifest.changed(receipt=receipt)))
    schedule = tmp_path / "schedule.yaml"
    folder = RunFolder(tmp_path / "run", read_schedule(schedule, tmp_path / "run"))
    assert not folder.is_verified(folder.stages[1])
    shutil.rmtree(start)
    assert folder.is_verified(folder.stages[1])
    preparing.prepare(folder, schedule)
    assert yaml.safe_load((tmp_path / "run" / "02-large" / "growth.yaml").read_text())
