"""What a run's folder is given before a step is taken: files, and commands that others submit.

A schedule that was edited since is followed where nothing has begun, and refused elsewhere.
"""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import accepted, flmgrow
from stage_plans import written
from stage_runs import prepared

from flmgrow.errors import UsageError
from flmgrow.formats.megatron.folders import TRACKER
from flmgrow.stages.preparing import encoded
from flmgrow.stages.steps import submitted
from flmgrow.storage.strict_yaml import read_yaml


def begun(schedule: Path, out: Path) -> None:
    """Make a run's folder in which each stage has begun, as far as folders tell."""
    prepared(schedule, out)
    for made in ("01-small/checkpoints/iter_0000006", "02-large/start", "02-large/checkpoints"):
        (out / made).mkdir(parents=True)
    (out / "01-small" / "checkpoints" / TRACKER).write_text("6")


@pytest.mark.parametrize("name", ["huge", None])
def test_a_stage_that_the_schedule_does_not_have_is_refused(
    tmp_path: Path, name: str | None
) -> None:
    """It was renamed, or taken out; a folder that is no stage's may lie there."""
    schedule, out = written(tmp_path), tmp_path / "out"
    begun(schedule, out)
    (out / "03-plots").mkdir()
    (out / "notes").mkdir()
    (out / "notes" / "stage.yaml").write_text("")
    prepared(schedule, out)
    content = yaml.safe_load(schedule.read_text())
    last = content["stages"].pop()
    content["stages"] += [] if name is None else [{**last, "name": name}]
    schedule.write_text(yaml.safe_dump(content))
    outcome = flmgrow("run", schedule, "--out", out, "--print-commands")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"error: {out / '02-large'}: is a stage that the schedule does not have" in outcome.err
    assert "may be removed" not in outcome.err
    for made in ("start", "checkpoints"):
        (out / "02-large" / made).rmdir()
    assert "may be removed" in flmgrow("run", schedule, "--out", out).err


@pytest.mark.parametrize("name", ["01-small/stage.yaml", "02-large/growth.yaml"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not YAML that can be read"),
        (b"\xff", "is not YAML that can be read"),
        (b"- a\n", "the whole: found ['a'], wanted a mapping"),
        (b"", "the whole: found nothing, wanted a mapping"),
    ],
)
def test_a_file_of_the_run_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    schedule, out = written(tmp_path), tmp_path / "out"
    begun(schedule, out)
    (out / name).write_bytes(content)
    outcome = flmgrow("run", schedule, "--out", out)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {out / name}: {message}")
    assert "hint: restore it from a copy, or give another --out" in outcome.err


def test_a_run_goes_on_with_a_flmgrow_that_knows_more_keys(tmp_path: Path) -> None:
    """They have their defaults in the files that an older one wrote; the control has another."""
    schedule, out = written(tmp_path), tmp_path / "out"
    begun(schedule, out)
    path = out / "01-small" / "stage.yaml"
    content = yaml.safe_load(path.read_text())
    del content["layout"]["overlap_grad_reduce"]
    path.write_text(yaml.safe_dump(content))
    prepared(schedule, out)
    content["layout"]["overlap_grad_reduce"] = True
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="overlap_grad_reduce is True, the schedule says False"):
        prepared(schedule, out)
    path.write_text(yaml.safe_dump(content | {"unheard": 1}))
    with pytest.raises(UsageError, match="unheard: there is no such key"):
        prepared(schedule, out)


def test_a_dry_run_looks_at_what_is_there(tmp_path: Path) -> None:
    schedule, out = written(tmp_path), tmp_path / "out"
    words = ("run", schedule, "--out", out, "--dry-run")
    assert "# done" not in accepted(*words).out
    begun(schedule, out)
    (out / "01-small" / "checkpoints" / TRACKER).write_text("6")
    assert accepted(*words).out.count("# done") == 2  # it is trained, and grown
    changed = written(tmp_path, model={"ffn_hidden_size": 64})
    outcome = flmgrow("run", changed, "--out", out, "--dry-run")
    assert outcome.code == 2
    assert "model.ffn_hidden_size is nothing, the schedule says 64" in outcome.err


def test_a_name_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    content = {"a": "1e3", "b": "089", "c": "-.5", "d": "no", "e": 3e-4, "f": "x", "g": ""}
    (tmp_path / "x.yaml").write_bytes(encoded(content))
    assert read_yaml(tmp_path / "x.yaml") == content


@pytest.mark.parametrize(
    ("dp", "devices", "nodes", "per_node"), [(3, 8, 2, 6), (8, 8, 4, 8), (3, 5, 3, 4), (1, 8, 1, 4)]
)
def test_every_node_has_as_many_ranks(
    tmp_path: Path, dp: int, devices: int, nodes: int, per_node: int
) -> None:
    """Launchers start no other number, and the trainer takes no more than the layout has."""
    layout = {"layout": {"tp": 4, "dp": dp}, "training": {"batch": 48, "steps": 4}}
    model = {"num_attention_heads": 8, "num_layers": 3}
    *_, train = prepared(written(tmp_path, large={**layout, "model": model}), tmp_path / "out")[1]
    options = f"--nnodes {nodes} --nproc-per-node {per_node} " if nodes > 1 else "--standalone "
    assert f"torchrun {options}" in submitted(train, "torchrun", devices)
    wanted = f"--nodes={nodes} --ntasks={4 * dp} --ntasks-per-node={per_node} "
    assert wanted in submitted(train, "srun", devices)


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_shell_reads_paths_as_they_are(tmp_path: Path, launcher: str) -> None:
    """As the shell itself tells; what is its to find out, it finds out."""
    _, steps = prepared(written(tmp_path), tmp_path / "my run's; $HOME")
    tell = '() { printf \'%s\\0\' "$MASTER_ADDR" "$@"; }; '
    for step in steps:
        line = submitted(step, launcher, 1)
        script = f"scontrol() {{ echo node; }}; srun{tell}torchrun{tell}flmgrow{tell}{line}"
        told = subprocess.check_output(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"})
        first, *words = told.decode().removesuffix("\0").split("\0")
        assert first == ("node" if step.trains and launcher == "srun" else "")
        assert words[-1] == step.words[-1]
        assert shlex.split(step.command) == ["flmgrow", *step.words]
