"""Missing states on the disk: megatron-core reads them as its own, and what is altered is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import dcp_folders
import pytest
import torch
from commands import accepted, flmgrow
from often import often
from stage_runs import edit, make_data, train, write_stage
from stage_runs import saved as files_of
from trained_here import small, trained_in

from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.layout.lags import lags_from_json
from flmgrow.formats.layout.placements import Slice
from flmgrow.trainer.loop import TrainingRun


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def stage(data: Path, load: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Return a stage of three layers of which the first is frozen, from ``load`` if given."""
    content = small(data, model={"num_layers": 3, "hidden_size": 32, "num_attention_heads": 4})
    content["training"] |= {"steps": 2, "freeze": {"layers": 0}}
    content["checkpoint"] |= {"every": 2, "format": changes.pop("form", "megatron")}
    if load is not None:
        content["checkpoint"]["load"] = str(load)
    return {**content, **changes}


@pytest.mark.parametrize("distributed", [False, True])
def test_megatron_core_reads_what_it_would_have_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distributed: bool
) -> None:
    """By its own functions, into an optimizer that has the same parameters: the same states."""
    compared = []
    save = TrainingRun._save

    def save_and_read(run: TrainingRun) -> None:
        save(run)
        optimizer = run._components.optimizer
        (member,) = getattr(optimizer, "chained_optimizers", [optimizer])
        states = member.optimizer.state
        known = {id(key): {n: v.clone() for n, v in entry.items()} for key, entry in states.items()}
        for entry in states.values():
            for value in entry.values():
                value.fill_(7)
        (file,) = (tmp_path / "checkpoints").rglob("model_optim_rng.pt")
        member.load_state_dict(torch.load(file, weights_only=False)["optimizer"])  # our own file
        if distributed:
            member.load_parameter_state(str(file.with_name("distrib_optim.pt")))
        for key, entry in member.optimizer.state.items():
            for name, value in entry.items():
                compared.append(torch.equal(known[id(key)][name], value))

    monkeypatch.setattr(TrainingRun, "_save", save_and_read)
    trained_in(tmp_path, stage(data, layout={"distributed_optimizer": distributed}))
    assert all(compared)
    assert len(compared) == 3 * (2 * 12 + 3)  # of two layers, an embedding and the last norm


@pytest.fixture(scope="module", params=["megatron", "torch_dist"])
def saved(
    data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trained_in(folder, stage(data, form=request.param))
    return folder / "checkpoints"


def test_inspect_tells_what_has_no_state(saved: Path) -> None:
    assert "12,704 parameters have no optimizer state" in accepted("inspect", saved).out
    (iteration,) = saved.glob("iter_*")
    lags = json.loads(accepted("inspect", saved, "--json").out)["lags"]
    assert lags == json.loads((iteration / "flmgrow_training.json").read_text())["lags"]


def test_a_state_is_not_missed_unless_it_is_said_to_be_missing(saved: Path, tmp_path: Path) -> None:
    """Without its training state a checkpoint lacks parts: nothing is made up in their place."""
    accepted("reshard", saved, tmp_path / "copy")
    for manifest in (tmp_path / "copy").rglob(MANIFEST):
        edit(manifest, lags=[])
    outcome = flmgrow("reshard", tmp_path / "copy", tmp_path / "other")
    assert outcome.code == 3
    assert outcome.err.count("error: ") == 1
    accepted("reshard", tmp_path / "copy", tmp_path / "bare", "--no-optimizer")


@pytest.mark.parametrize("form", ["megatron", "torch_dist"])
def test_verify_compares_lags(data: Path, tmp_path: Path, form: str) -> None:
    """Of late parameters: legacy files say their steps themselves, the others by the manifest."""
    content = stage(data, form=form)
    content["training"]["unfreeze_at"] = 1
    trained_in(tmp_path / "run", content)
    source = tmp_path / "run" / "checkpoints"
    accepted("reshard", source, tmp_path / "a")
    accepted("verify", source, tmp_path / "a")
    for manifest in (tmp_path / "a").rglob(MANIFEST):
        lags = json.loads(manifest.read_text())["lags"]
        assert {lag["steps"] for lag in lags} == {1}
        edit(manifest, lags=[{**lag, "steps": 2} for lag in lags])
    outcome = flmgrow("verify", source, tmp_path / "a")
    assert outcome.code != 0
    assert ("step counts" if form == "megatron" else "the lag of") in outcome.out + outcome.err


@pytest.mark.slow
def test_late_parameters_count_their_own_steps_under_megatron_fsdp(
    data: Path, tmp_path: Path
) -> None:
    """As torch's Adam does, for each parameter; and what is frozen has no state there either."""
    content = stage(data, form="torch_dist")
    content["training"] |= {"steps": 3, "unfreeze_at": 2, "freeze": {"layers": 0}}
    trained_in(tmp_path / "run", content)
    source = tmp_path / "run" / "checkpoints"
    for name, form in (("a", "fsdp_dtensor"), ("b", "fsdp_dtensor"), ("c", "torch_dist")):
        accepted("reshard", source, tmp_path / name, "--format", form)
        accepted("verify", source, tmp_path / name)
        source = tmp_path / name
    (folder,) = (tmp_path / "b").glob("iter_*")
    names = [name for name in read_metadata(folder).tensors if name.endswith(".step")]
    steps = {name: torch.zeros(()) for name in names}
    dcp_folders.load(folder, steps)
    late = {name for name in names if ".layers.0." in name}
    assert {float(steps[name]) for name in late} == {1}
    assert {float(steps[name]) for name in names if name not in late} == {3}


def test_a_count_below_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    content = stage(data, form="torch_dist")
    content["training"]["unfreeze_at"] = 1
    trained_in(tmp_path / "run", content)
    accepted("reshard", tmp_path / "run" / "checkpoints", tmp_path / "a")
    for manifest in (tmp_path / "a").rglob(MANIFEST):
        lags = json.loads(manifest.read_text())["lags"]
        edit(manifest, lags=[{**lag, "steps": 3} for lag in lags])
    later = {**stage(data, tmp_path / "a"), "name": "later"}
    told = trained_in(tmp_path / "later", later, expect=3)
    assert "optimizer: lags behind by 3 steps, wanted at most 2" in told


def test_what_is_frozen_may_be_another_from_a_checkpoint_on(data: Path, tmp_path: Path) -> None:
    """Told as any change; what trains from there on has counted so many steps less."""
    trained_in(tmp_path, stage(data))
    content = stage(data)
    content["training"] |= {"steps": 4, "freeze": {"layers": 1}}
    told = trained_in(tmp_path, content)
    assert "note: training.freeze is {layers: 1} after step 2, was {layers: 0}\n" in told
    lags = read_lags(tmp_path / "checkpoints" / "iter_0000004")
    assert {lags["query", 0], lags["query", 1]} == {2, None}
    assert ("query", 2) not in lags
    assert ("embedding", None) not in lags


def read_lags(iteration: Path) -> dict[Slice, int | None]:
    content = json.loads((iteration / "flmgrow_training.json").read_text())
    return lags_from_json(content["lags"])


LAYOUTS: dict[str, dict[str, Any]] = {
    "pipeline": {"layout": {"pp": 2}},
    "replicas, half precision": {
        "layout": {"dp": 2, "distributed_optimizer": True},
        "form": "torch_dist",
        "precision": "bfloat16",
    },
    "tensor": {"layout": {"tp": 2, "distributed_optimizer": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", often(LAYOUTS, "replicas, half precision"))
def test_ranks_that_are_killed_before_or_after_unfreezing_change_no_bit(
    data: Path, tmp_path: Path, name: str
) -> None:
    changes = {**LAYOUTS[name]}
    precision = changes.pop("precision", "float32")
    content = stage(data, **changes)
    content["model"] |= {"num_layers": 4}
    content["training"] |= {"steps": 4, "unfreeze_at": 2, "precision": precision}
    content["training"]["freeze"] = [{"layers": "0-1"}, {"tensors": "embedding"}]
    content["checkpoint"]["every"] = 1
    whole = write_stage(tmp_path / "whole", content)
    train(whole)
    for kept in (1, 2, 3):
        broken = tmp_path / f"broken{kept}"
        shutil.copytree(whole.parent, broken)
        for number in range(kept + 1, 5):
            shutil.rmtree(broken / "checkpoints" / f"iter_{number:07d}")
        (broken / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(kept))
        train(broken / "stage.yaml")
        assert files_of(broken / "stage.yaml", 4) == files_of(whole, 4), kept
