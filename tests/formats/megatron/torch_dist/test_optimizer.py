"""Optimizer state goes through torch_dist and comes back, bit for bit, of whichever kind it is."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from commands import accepted, refused
from growing import grow_checkpoint, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from optimizer_states import Content, equal, optimizers, states
from pico import CONFIGS, even, make_checkpoint, padded_vocab
from pico_distributed import FLAT, distribute
from strategies import any_config, as_request, examples, layouts_of

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig
from flmgrow.operators.choices import Moments
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

KINDS = ["float64", "float32", "bfloat16", "float32 distributed", "bfloat16 distributed"]


def make(path: Path, config: ModelConfig, layout: Layout, kind: str) -> Path:
    """Write a legacy checkpoint with optimizer state of a kind."""
    dtype, _, distributed = kind.partition(" ")
    make_checkpoint(path, config, layout, dtype=dtype, naming="fused", optimizer=True)
    return distribute(path) if distributed else path


def flat_files(path: Path) -> list[Any]:
    return [torch.load(file, weights_only=False) for file in sorted(path.rglob(FLAT))]


def assert_same_states(a: Path, b: Path, vocab: int) -> None:
    """Every element, but for vocabulary padding, which depends on the layout."""
    before, after = states(a), states(b)
    assert before.keys() == after.keys()
    for state, name in ((kind, name) for kind in before for name in before[kind]):
        rows = vocab if name in ("embedding", "head") else None
        assert same_bits(before[state][name][:rows], after[state][name][:rows]), (state, name)


@pytest.mark.slow
@examples(20)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(["0.16", "0.19"]))
def test_there_and_back_is_bit_equal(data: DataObject, kind: str, version: str) -> None:
    """Steps, groups and scheduler come back, too."""
    config = data.draw(any_config())
    first, second = data.draw(layouts_of(config)), data.draw(layouts_of(config))
    with TemporaryDirectory() as folder:
        a, b, c = (Path(folder, name) for name in "abc")
        make(a, config, first, kind)
        grow_checkpoint(a, b, request=as_request(second), file_format="torch_dist", version=version)
        assert_same_states(a, b, config.vocab)
        grow_checkpoint(b, c, request=as_request(first), file_format="megatron")
        assert_same_states(a, c, config.vocab)
        if padded_vocab(config, second.tp) >= padded_vocab(config, first.tp):
            assert equal(optimizers(a), optimizers(c))
            assert equal(flat_files(a), flat_files(c))


@pytest.mark.parametrize("kind", ["float64", "bfloat16 distributed"])
@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
def test_growing_into_it_is_growing(kind: str, method: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    make(tmp_path / "a", config, even(config, 2, 2), kind)
    target = Target(layers=6, hidden=20, ffn=32, methods=parse_methods(method))
    for out in ("megatron", "torch_dist"):
        grow_checkpoint(
            tmp_path / "a", tmp_path / out, target, LayoutRequest(1, 2), file_format=out
        )
    assert_same_states(tmp_path / "megatron", tmp_path / "torch_dist", config.vocab)
    accepted("verify", tmp_path / "a", tmp_path / "torch_dist")


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
def test_reset_counts_from_zero(kind: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    make(tmp_path / "a", config, even(config), kind)
    target = Target(moments=Moments.RESET)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", target, file_format="torch_dist")
    optimizer = common(tmp_path / "b")["optimizer"]
    assert optimizer.get("optimizer", optimizer)["state"] == {"common_step": 0.0}


def test_the_loader_is_told_how_a_distributed_one_is_laid_out(tmp_path: Path) -> None:
    """Megatron-LM asks the checkpoint before it describes what it wants to load."""
    config = CONFIGS["llama"]
    for kind, wanted in (("float32", None), ("float32 distributed", "fully_reshardable")):
        make(tmp_path / kind, config, even(config), kind)
        grow_checkpoint(tmp_path / kind, tmp_path / f"{kind} out", file_format="torch_dist")
        found = common(tmp_path / f"{kind} out")
        assert found["content_metadata"].get("distrib_optim_sharding_type") == wanted
        assert found["optimizer"].get("param_state_sharding_type") == wanted


def test_only_the_state_can_be_left_out(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    make(tmp_path / "a", config, even(config), "float32")
    options = ("--format", "torch_dist", "--no-optimizer")
    accepted("reshard", tmp_path / "a", tmp_path / "b", *options)
    assert not {"optimizer", "opt_param_scheduler"} & common(tmp_path / "b").keys()
    with open_checkpoint(tmp_path / "b") as opened:
        assert "optimizer" not in opened.carried
    manifest = json.loads((tmp_path / "b" / "flmgrow.json").read_text())
    assert manifest["optimizer"] == "dropped"


# --- what does not fit


def common(root: Path) -> Content:
    (file,) = root.rglob("common.pt")
    content: Content = torch.load(file, weights_only=False)
    return content


def without_step(content: Content) -> None:
    content["optimizer"]["state"].clear()


def without_groups(content: Content) -> None:
    content["optimizer"]["param_groups"] = []


def without_entry(content: Content) -> None:
    del content["optimizer"]


def of_another_kind(content: Content) -> None:
    content["optimizer"] = {"optimizer": content["optimizer"]}
    content["args"].ffn_hidden_size = 24


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_step, "common.pt: optimizer: has no state.common_step"),
        (without_groups, "common.pt: optimizer: has no param_groups"),
        (without_entry, "common.pt: optimizer: not there"),
        (of_another_kind, "shape"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[Content], None], says: str, tmp_path: Path
) -> None:
    config = CONFIGS["llama"]
    make(tmp_path / "a", config, even(config), "float64")
    grow_checkpoint(tmp_path / "a", tmp_path / "b", file_format="torch_dist")
    (file,) = (tmp_path / "b").rglob("common.pt")
    content = common(tmp_path / "b")
    change(content)
    torch.save(content, file)
    refused(3, says, "reshard", tmp_path / "b", tmp_path / "c", place=tmp_path)
