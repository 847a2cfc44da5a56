"""Opening what Megatron-LM writes: folders, iterations, naming schemes, everything carried."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import accepted, refused
from growing import checkpoint_logits, grow_checkpoint, tokens_for
from pico import CONFIGS, DictWeights, even, logical_weights, make_checkpoint, stored_weights

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.folders import TRACKER, iteration_folder
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import full_box
from flmgrow.model.forward import logits
from flmgrow.surgery.layout_request import LayoutRequest


@pytest.mark.parametrize("naming", ["local", "fused"])
@pytest.mark.parametrize("extra_state", ["none", "bytes", "bytesio"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_read_as_it_was_made(
    name: str, extra_state: str, naming: str, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    tp = 1 if config.kv_groups == 1 else 2
    layout = Layout(tp, 2, 2, (1, 2, 0, 1))
    path = make_checkpoint(
        tmp_path, config, layout, naming=naming, extra_state=extra_state
    )  # fmt: skip
    with open_megatron(path) as opened:
        assert opened.config == config
        assert opened.layout == layout
        assert opened.iteration == 30
        assert opened.fused == (naming == "fused")
        assert opened.dtype == "float64"
        assert (opened.padded_vocab, opened.vocab_multiple) == (56 if tp == 1 else 64, 8)
    tokens = tokens_for(config.vocab)
    wanted = logits(config, DictWeights(logical_weights(config)), tokens)
    assert (checkpoint_logits(path, tokens) - wanted).abs().max() < 1e-14


@pytest.mark.parametrize("naming", ["local", "fused"])
def test_a_first_rank_without_layers_tells_no_naming(naming: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    layout = Layout(1, 4, 1, (0, 2, 2, 0))
    path = make_checkpoint(tmp_path / "a", config, layout, naming=naming)
    with open_megatron(path) as opened:
        assert opened.fused == (naming == "fused")
    grow_checkpoint(path, tmp_path / "b", request=LayoutRequest(pp=1))
    with open_megatron(tmp_path / "b") as opened:
        assert opened.fused == (naming == "fused")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_dtype_is_read_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    with open_megatron(make_checkpoint(tmp_path, config, dtype=dtype)) as opened:
        assert opened.dtype == dtype
        for name, tensor in stored_weights(config, 0, dtype).items():
            array = opened.reader.arrays[0]
            shape = tuple(tensor.shape)
            read = opened.reader.read(name, full_box(shape))
            assert array.dtype == dtype
            assert np.array_equal(read.astype(np.float64), tensor.double().numpy())


def test_iterations_are_found_as_megatron_finds_them(tmp_path: Path) -> None:
    for iteration in (10, 1000):
        make_checkpoint(tmp_path, "llama", iteration=iteration)
    assert iteration_folder(tmp_path).name == "iter_0001000"
    assert iteration_folder(tmp_path, 10).name == "iter_0000010"
    assert iteration_folder(tmp_path / "iter_0000010").name == "iter_0000010"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10\n")
    with open_megatron(tmp_path) as opened:
        assert opened.iteration == 10
    with open_megatron(tmp_path / "iter_0001000") as opened:
        assert opened.iteration == 1000
    (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(BadCheckpointError, match="has neither rank folders nor"):
        open_megatron(tmp_path)


def test_a_release_has_no_iteration_and_stays_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "tele", iteration=None)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", request=LayoutRequest(tp=2))
    with open_megatron(tmp_path / "b") as opened:
        assert opened.iteration is None
        assert opened.folder.name == "release"
    assert (tmp_path / "b/latest_checkpointed_iteration.txt").read_text() == "release"


def test_optimizer_state_is_not_dropped_in_silence(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    with open_megatron(path) as opened:
        assert {"optimizer", "opt_param_scheduler", "rng_state"} <= opened.carried.keys()
    grow_checkpoint(path, tmp_path / "b")
    with open_megatron(tmp_path / "b") as opened:
        assert {"optimizer", "opt_param_scheduler"} <= opened.carried.keys()


def test_what_is_carried_comes_back_unchanged(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    path = make_checkpoint(tmp_path / "a", config, even(config, 2), note={"a": (1, "b")})
    grow_checkpoint(path, tmp_path / "b")
    for rank in ("mp_rank_00", "mp_rank_01"):
        before, after = (
            torch.load(root / "iter_0000030" / rank / "model_optim_rng.pt", weights_only=False)
            for root in (path, tmp_path / "b")
        )
        assert list(before) == list(after)
        assert before["args"].note == after["args"].note
        assert before["args"].params_dtype is after["args"].params_dtype
        ours, theirs = before["rng_state"][0], after["rng_state"][0]
        assert ours["random_rng_state"] == theirs["random_rng_state"]
        assert np.array_equal(ours["np_rng_state"][1], theirs["np_rng_state"][1])
        assert torch.equal(ours["torch_rng_state"], theirs["torch_rng_state"])
        for key, value in before["model"].items():
            assert value is None or torch.equal(value, after["model"][key])


def test_nothing_in_a_source_folder_is_touched(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a", "gpt")

    def snapshot() -> list[tuple[str, int, int]]:
        files = sorted(path.rglob("*"))
        return [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files]

    before = snapshot()
    grow_checkpoint(path, tmp_path / "b", request=LayoutRequest(tp=4))
    assert snapshot() == before


@pytest.mark.parametrize("layout", ["legacy", "torch_dist"])
def test_a_file_of_another_iteration_than_its_folder_is_told(layout: str, tmp_path: Path) -> None:
    """Trainers go on from the number in the file; the tracker and people read the folder's."""
    source = make_checkpoint(tmp_path / "a", CONFIGS["llama"], even(CONFIGS["llama"], 2))
    if layout == "torch_dist":
        accepted("reshard", source, tmp_path / "b", "--format", "torch_dist")
        source = tmp_path / "b"
    folder = next(source.glob("iter_*"))
    with open_checkpoint(source) as opened:
        number = opened.iteration
    folder.rename(source / "iter_0000077")
    (source / TRACKER).write_text("77")
    (source / "flmgrow.json").unlink(missing_ok=True)
    says = rf"iteration is {number}, its folder is iter_0000077"
    refused(3, says, "reshard", source, tmp_path / "c", place=tmp_path)
    refused(3, says, "verify", source, source, place=tmp_path)
