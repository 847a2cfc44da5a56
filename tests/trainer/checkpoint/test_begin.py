"""What a stage begins with gives all that it has, or its weights only; the guard remembers.

And behind a closed mask nothing moves.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted
from pico import make_checkpoint
from sampling import first
from stage_runs import make_data, metrics, write_stage
from trained_here import small, trained, trained_in

from flmgrow.formats.history.manifest import masks_of, training_of
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import Axis, Box
from flmgrow.trainer.stage.file import read_stage

LARGE = ("--hidden-size", 48, "--ffn-hidden-size", 176, "--num-attention-heads", 6)
DEEP = (*LARGE, "--num-layers", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage of twelve steps, with its checkpoint and an export of that."""
    folder = tmp_path_factory.mktemp("whole")
    trained_in(folder, small(data, training={"steps": 12}, guard={"window": 10}))
    accepted("export", folder / "checkpoints", folder / "hf")
    return folder


def next_stage(data: Path, load: Path, /, **changes: Any) -> dict[str, Any]:
    """Return a stage of another name that begins with a checkpoint, and follows its model."""
    content = small(data, name="next", training={"steps": 2}, checkpoint={"load": str(load)})
    del content["model"]
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value}
    return content


@pytest.mark.parametrize(("kind", "begin"), [("hf", None), ("hf", "anew"), ("checkpoints", "anew")])
def test_weights_only(
    data: Path, whole: Path, tmp_path: Path, kind: str, begin: str | None
) -> None:
    """On other data, of another length: Adam, samples and steps are counted from 0."""
    checkpoint = {"load": str(whole / kind), **({"begin": begin} if begin else {})}
    content = next_stage(
        data, whole / kind, checkpoint=checkpoint, data={"sequence_length": 64, "seed": 5}
    )
    told = trained_in(tmp_path, content)
    assert "only weights are taken: Adam, data and iterations begin anew\n" in told
    first, second = metrics(tmp_path / "stage.yaml")
    assert (first["step"], first["samples"], first["tokens"]) == (1, 8, 8 * 64)
    assert second["loss"] < 4.9  # fresh weights: log(257) is 5.5
    with open_checkpoint(tmp_path / "checkpoints") as saved:
        carried = training_of(saved)
        assert saved.iteration == 2
        assert carried is not None
        assert (carried.consumed_samples, len(carried.losses)) == (16, 2)


def test_all_that_a_checkpoint_has_needs_its_data(data: Path, whole: Path, tmp_path: Path) -> None:
    other = next_stage(data, whole / "checkpoints", data={"sequence_length": 64})
    told = trained_in(tmp_path, other, expect=2)
    assert "of other data: data.sequence_length is 32, now 64" in told
    assert "begin with weights only (checkpoint.begin: anew)" in told
    trained_in(tmp_path, next_stage(data, whole / "checkpoints"))
    assert [record["step"] for record in metrics(tmp_path / "stage.yaml")] == [13, 14]


def test_a_folder_of_weights_gives_no_more(data: Path, whole: Path, tmp_path: Path) -> None:
    content = next_stage(data, whole / "hf", checkpoint={"begin": "continue"})
    told = trained_in(tmp_path, content, expect=2)
    assert "checkpoint.begin is continue, but a Hugging Face folder has weights only" in told


def test_halves_give_their_masters(data: Path, tmp_path: Path) -> None:
    """Else a step of training would begin with weights that were rounded a second time."""
    half = {"training": {"steps": 2, "precision": "bfloat16"}}
    trained_in(tmp_path / "half", small(data, **half))
    content = next_stage(
        data,
        tmp_path / "half" / "checkpoints",
        training={"steps": 1, "precision": "bfloat16"},
        learning_rate={"warmup_samples": 80},
        checkpoint={"begin": "anew"},
    )
    trained_in(tmp_path / "next", content)  # a warm-up begins with a rate of 0: nothing moves
    before, after = (masters(tmp_path / name / "checkpoints") for name in ("half", "next"))
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def masters(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from flmgrow.formats.opening import with_optimizer
    from flmgrow.model.states import State

    with open_checkpoint(folder) as opened:
        reader = with_optimizer(opened).state_readers[State.MASTER]
        return read_all(reader, opened)


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_checkpoint(folder) as opened:
        return read_all(opened.reader, opened)


def read_all(reader: Any, opened: Any) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for name, tensor in reader.tensors.items():
        shape = tensor.shape({**opened.config.sizes, Axis.VOCAB: opened.config.vocab})
        layers = range(shape[0]) if tensor.layered else [None]
        boxes = [
            Box(tuple((0, size) for size in shape))
            if layer is None
            else Box(((layer, layer + 1), *((0, size) for size in shape[1:])))
            for layer in layers
        ]
        found[name] = np.concatenate([reader.read(name, box) for box in boxes])
    return found


def grown(whole: Path, folder: Path, *options: object) -> Path:
    accepted("expand", whole / "checkpoints", folder / "start", *DEEP, *options)
    return folder / "start"


@pytest.mark.parametrize("precision", first(1, ["bfloat16", "float32"]))
def test_what_lies_behind_a_closed_mask_stays_as_it_was_drawn(
    data: Path, whole: Path, tmp_path: Path, precision: str
) -> None:
    """In every dimension, to the last bit, though AdamW lets all weights decay."""
    start = grown(whole, tmp_path, "--ramp-steps", 4)
    content = next_stage(
        data,
        start,
        training={"steps": 3, "precision": precision},
        learning_rate={"peak": 1e-2, "warmup_samples": 0},
        optimizer={"weight_decay": 0.5},
        masks={"in_turn": True, "ramp_steps": 2},
        layout={"distributed_optimizer": precision == "bfloat16"},
    )
    trained_in(tmp_path, content)
    with open_checkpoint(start) as opened:
        masks = masks_of(opened)
    first, *closed = masks
    half = precision == "bfloat16"
    before = weights(start)
    after = masters(tmp_path / "checkpoints") if half else weights(tmp_path / "checkpoints")
    moved = 0
    for name, values in before.items():
        with open_checkpoint(start) as opened:
            axes = opened.reader.tensors[name].axes
        shut = np.zeros(values.shape, bool)
        opening = np.zeros(values.shape, bool)
        for dimension, mask in masks.items():
            for axis, indices in mask.fresh.items():
                if axis in axes:
                    chosen = opening if dimension == first else shut
                    np.moveaxis(chosen, axes.index(axis), 0)[indices] = True
        np.testing.assert_array_equal(after[name][shut], values[shut], err_msg=name)
        moved += int((after[name][opening & ~shut] != values[opening & ~shut]).sum())
        assert (after[name][~shut] != values[~shut]).any(), name
    assert len(closed) == 3
    assert moved


@pytest.mark.slow
def test_the_guard_of_a_grown_stage_knows_the_losses_before(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """At the first step it would have stopped the stage before; the control knows none."""
    start = grown(whole, tmp_path, "--ramp-steps", 4)
    wild = {
        "training": {"steps": 6},
        "learning_rate": {"peak": 3.0, "warmup_samples": 0},
        "guard": {"spike": 0.5, "window": 10},
    }
    told = trained_in(tmp_path / "a", next_stage(data, start, **wild), expect=7)
    assert "error: step 14: loss " in told
    assert "mean of the last 10 is " in told
    stacked = tmp_path / "stacked"
    words = ("--num-layers", 4, "--method", "depth=stack")
    accepted("expand", whole / "checkpoints", stacked, *words)
    trained_in(tmp_path / "b", next_stage(data, stacked, **wild))


@pytest.mark.slow
def test_a_smaller_batch_is_no_false_alarm(data: Path, whole: Path, tmp_path: Path) -> None:
    start = grown(whole, tmp_path, "--ramp-steps", 4)
    content = next_stage(
        data, start, training={"steps": 12, "batch": 1, "micro_batch": 1},
        learning_rate={"peak": 1e-4}, guard={"spike": 0.5, "window": 10},
    )  # fmt: skip
    trained_in(tmp_path, content)
    found = [record["loss"] for record in metrics(tmp_path / "stage.yaml")]
    with open_checkpoint(whole / "checkpoints") as opened:
        carried = training_of(opened)
    assert carried is not None
    mean = sum(carried.losses) / len(carried.losses)
    assert carried.loss_batches == [8] * 10
    assert max(found[:3]) < mean + 0.5 * 8**0.5


def test_what_the_user_vouches_for_has_a_key(data: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "odd", "gpt", dtype="float32", odd_attention_gate=True)
    content = next_stage(data, tmp_path / "odd", data={"sequence_length": 8})
    told = trained_in(tmp_path / "a", content, expect=3)
    assert 'say checkpoint.ignore_arguments: ["odd_attention_gate"]' in told
    content["checkpoint"]["ignore_arguments"] = ["odd_*"]
    told = trained_in(tmp_path / "b", content, expect=2)
    assert "the tokenizer has 257 ids, the model " in told  # it was read


def test_arguments_that_are_wrong_have_a_key(data: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "odd", "gpt", dtype="float32", num_layers=6)
    content = next_stage(data, tmp_path / "odd", data={"sequence_length": 8})
    told = trained_in(tmp_path / "a", content, expect=3)
    assert 'say checkpoint.set_arguments: ["num_layers=4"]' in told
    content["checkpoint"]["set_arguments"] = ["num_layers=4"]
    told = trained_in(tmp_path / "b", content, expect=2)
    assert "the tokenizer has 257 ids, the model " in told  # it was read


def test_an_iteration_that_is_missing_is_named_so_that_it_can_be_given(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    lost = Path(shutil.copytree(whole / "checkpoints", tmp_path / "lost"))
    (lost / "latest_checkpointed_iteration.txt").write_text("99")
    told = trained_in(tmp_path / "a", next_stage(data, lost), expect=3)
    given = next_stage(data, lost / "iter_0000012")
    stage = write_stage(tmp_path / "b", given)
    assert f"the newest complete iteration is 12: give {lost / 'iter_0000012'}" in told
    assert read_stage(stage).checkpoint.load == lost / "iter_0000012"
    trained(stage)
