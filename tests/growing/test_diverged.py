"""A growth after which the loss leaves its band is taken back, and the run says so."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_place import END, MASK, assert_same, stages, weights
from stage_runs import make_data, metrics, train, write_stage
from trained_here import trained

from flmgrow.errors import DivergenceError
from flmgrow.growing.in_place import GrowthInPlace
from flmgrow.trainer.checkpoint.begin import Begin
from flmgrow.trainer.live import LiveModel
from flmgrow.trainer.metrics.guard import LossGuard
from flmgrow.trainer.stage.file import StageFile

BAD = END - 1
"""The step of which the loss is not finite: the second one after the growth."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bad_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first loss of the bad step not be finite."""
    check, met = LossGuard.check, list[int]()

    def once(
        guard: LossGuard, step: int, loss: float, grad_norm: float, batch: int | None = None
    ) -> None:
        is_first = step == BAD and not met
        met.extend([step] * is_first)
        check(guard, step, float("nan") if is_first else loss, grad_norm, batch)

    monkeypatch.setattr(LossGuard, "check", once)


@pytest.mark.slow
@pytest.mark.usefixtures("bad_once")
def test_the_run_stops_before_the_growth_and_can_grow_anew(data: Path, tmp_path: Path) -> None:
    _, second = stages(data, tmp_path / "bad", MASK, checkpoint={"every": 1})
    told = trained(second, DivergenceError.exit_code)
    assert f"step {BAD}: loss nan" in told
    assert "the growth at step 4 is taken back, to the checkpoint in" in told
    kept, aside = second.parent / "checkpoints", second.parent / "checkpoints.diverged"
    assert str(aside) in told
    assert [path.name for path in aside.iterdir()] == [f"iter_{BAD - 1:07d}"]
    assert not kept.exists()
    trained(second)
    _, good = stages(data, tmp_path / "good", MASK, checkpoint={"every": 1})
    trained(good)
    assert_same(second, good)


@pytest.mark.slow
@pytest.mark.usefixtures("bad_once")
def test_it_goes_on_ungrown_if_it_is_asked_to(data: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"checkpoint": {"every": 1}, "place": {"if_diverged": "ungrown"}}
    first, second = stages(data, tmp_path / "bad", MASK, **asked)
    told = trained(second)
    assert "is taken back" in told
    assert "and the stage goes on with that model" in told
    content = yaml.safe_load(second.read_text())
    del content["growth"]
    content["checkpoint"]["load"] = str(first.parent / "checkpoints")
    plain = write_stage(tmp_path / "plain", content)
    trained(plain)
    assert_same(second, plain)
    checkpoints = second.parent / "checkpoints"
    done = weights(second, END)
    shutil.rmtree(checkpoints / f"iter_{END:07d}")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(f"{END - 1}")
    assert "its growth has diverged and was taken back" in trained(second)
    assert weights(second, END) == done


@pytest.mark.slow
@pytest.mark.usefixtures("bad_once")
@pytest.mark.parametrize("rule", ["old", {"layers": 2}])
def test_what_goes_on_ungrown_trains_as_a_whole(data: Path, tmp_path: Path, rule: Any) -> None:
    """What a growth would have made old, or a layer that it would have made, is not there."""
    asked: dict[str, Any] = {"checkpoint": {"every": 1}, "place": {"if_diverged": "ungrown"}}
    frozen = {"freeze": rule, "unfreeze_at": 2}
    _, second = stages(data, tmp_path / "frozen", MASK, large_training=frozen, **asked)
    told = trained(second)
    assert "that was to grow; training.freeze is of the grown one: all trains\n" in told
    told = trained(second)
    assert "there is nothing to do" in told
    content = yaml.safe_load(second.read_text())
    del content["growth"], content["training"]["freeze"], content["training"]["unfreeze_at"]
    content["checkpoint"]["load"] = str(tmp_path / "frozen" / "small" / "checkpoints")
    plain = write_stage(tmp_path / "plain", content)
    trained(plain)
    assert weights(second, END) == weights(plain, END)


def test_a_growth_that_changes_the_function_is_found_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = stages(data, tmp_path, MASK)
    grow = GrowthInPlace.grow

    def broken(growing: GrowthInPlace, live: LiveModel, stage: StageFile) -> Begin:
        """Grow, and forget that fresh units are masked."""
        return replace(grow(growing, live, stage), masks={})

    monkeypatch.setattr(GrowthInPlace, "grow", broken)
    told = trained(second, DivergenceError.exit_code)
    assert "step 4: grown, the loss of the same batch is" in told
    assert "is taken back" in told


@pytest.mark.slow
def test_all_ranks_go_back_together(data: Path, tmp_path: Path) -> None:
    """A rate that is far too high, on two replicas."""
    ranks: dict[str, Any] = {"layout": {"dp": 2}, "checkpoint": {"every": 1}}
    first, second = stages(data, tmp_path, MASK, **ranks)
    content = yaml.safe_load(second.read_text())
    content["learning_rate"]["peak"] = 1e30
    write_stage(second.parent, content)
    told = train(second, DivergenceError.exit_code)
    assert told.count("the growth at step 4 is taken back") == 1
    assert [path.name for path in (first.parent / "checkpoints").glob("iter_*4")]
    assert not (second.parent / "checkpoints").exists()


@pytest.mark.usefixtures("bad_once")
def test_long_after_a_growth_it_is_not_to_blame(data: Path, tmp_path: Path) -> None:
    growth = {**MASK, "ramp_steps": 1}
    guard: dict[str, Any] = {"checkpoint": {"every": 1}, "guard": {"window": 1}}
    _, second = stages(data, tmp_path, growth, **guard)
    told = trained(second, DivergenceError.exit_code)
    assert "taken back" not in told
    assert f"the last good checkpoint in {second.parent / 'checkpoints'} is that of step 5" in told


@pytest.mark.slow
@pytest.mark.usefixtures("bad_once")
def test_a_run_that_goes_back_to_its_growth_grows_again(data: Path, tmp_path: Path) -> None:
    growth = {**MASK, "ramp_steps": 1}
    guard: dict[str, Any] = {"guard": {"window": 1, "action": "rollback"}}
    _, second = stages(data, tmp_path, growth, checkpoint={"every": None}, **guard)
    told = trained(second)
    assert "goes back to what the stage begins with, and passes over samples 32 to 47" in told
    assert told.count("grown in memory") == 2
    assert [(each["step"], each["samples"]) for each in metrics(second)] == [
        (5, 56), (6, 64), (7, 72),
    ]  # fmt: skip
