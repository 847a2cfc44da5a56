"""New ids leave old ones their logits, and take no more of the softmax than the average old one."""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import (
    EXACT,
    SmallBlocks,
    checkpoint_logits,
    grow_checkpoint,
    same_bits,
    stored_arrays,
    tokens_for,
)
from optimizer_states import states
from pico import CONFIGS, DictWeights, even, logical_weights, make_checkpoint
from pico_model import skewed_weights
from torch import Tensor
from torch.nn.functional import cross_entropy

from flmgrow.model.arrays import Array
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.model.forward import logits
from flmgrow.operators.choices import FreshRows
from flmgrow.operators.draws import normal
from flmgrow.operators.target import Target, parse_methods
from flmgrow.operators.vocab import ROW_NOISE
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest

SEED = 5
NOISE = 0.02
"""By how much noise may move the logits of these models."""

MODELS: Mapping[str, ModelConfig] = {
    **CONFIGS,
    "logits of a thousand": replace(CONFIGS["tele"], multipliers=Multipliers(output=2000.0)),
}
TABLES = ("embedding", "head")


def target(config: ModelConfig, method: str, new: int, hidden: int, **more: object) -> Target:
    methods = parse_methods(method)
    untie = config.norm == "layernorm" and config.tied and method == "zero"
    wanted = Target(vocab=config.vocab + new, hidden=hidden, methods=methods, untie=untie)
    return replace(wanted, **more)  # type: ignore[arg-type]


def loss(scores: Tensor, tokens: Tensor) -> float:
    return float(cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize(("method", "hidden"), [("mask", 20), ("zero", 20), ("copy", 31)])
@pytest.mark.parametrize("name", MODELS)
def test_new_ids_have_the_mean_logit_of_the_old(
    name: str, method: str, hidden: int, tmp_path: Path
) -> None:
    config = MODELS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, pp=2), seed=SEED)
    wanted = target(config, method, 13, hidden)
    silent = Execution(init_std=0.0)  # no noise; drawn columns, which nothing reads yet, are zero
    grow_checkpoint(source, tmp_path / "b", wanted, LayoutRequest(pp=1), silent)
    tokens = tokens_for(config.vocab)
    new = checkpoint_logits(tmp_path / "b", tokens)
    old = logits(config, DictWeights(logical_weights(config, SEED)), tokens)
    scale = max(1.0, float(old.abs().max()))
    assert (scale > 100) == (name == "logits of a thousand")
    assert (new[..., : config.vocab] - old).abs().max() <= EXACT * scale
    mean = old.mean(-1, keepdim=True)
    assert (new[..., config.vocab :] - mean).abs().max() <= EXACT * scale


@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
@pytest.mark.parametrize("name", ["llama", "gpt", "flm"])
def test_the_loss_rises_by_no_more_than_the_new_ids_share(
    name: str, method: str, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    weights = skewed_weights(config, SEED)
    source = make_checkpoint(tmp_path / "a", config, weights=weights)
    tokens = tokens_for(config.vocab)
    before = checkpoint_logits(source, tokens)
    assert before.max() < 0
    allowed = log(1 + 40 / config.vocab)
    for rows, wrong in (("mean", False), ("drawn", True)):
        wanted = target(config, method, 40, 20, fresh_rows=rows)
        grow_checkpoint(source, tmp_path / rows, wanted)
        after = checkpoint_logits(tmp_path / rows, tokens)
        rise = loss(after, tokens) - loss(before, tokens)
        shares = after.softmax(-1)[..., config.vocab :].sum(-1)
        if wrong:
            assert rise > allowed
            assert shares.max() > 0.9
            assert (after.argmax(-1) >= config.vocab).any()
        else:
            assert 0 < rise <= allowed + NOISE
            assert shares.max() <= 40 / (40 + config.vocab) + NOISE
            assert torch.equal(after.argmax(-1), before.argmax(-1))


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_rows_are_near_the_mean_of_the_true_vocabulary(name: str, tmp_path: Path) -> None:
    """Padding of the source is no row that was trained, though something may stand in it."""
    config = CONFIGS[name]
    source = make_checkpoint(tmp_path / "a", config, seed=SEED)
    assert stored_arrays(source)["embedding"][config.vocab :].any()
    grow_checkpoint(source, tmp_path / "b", Target(vocab=3000))
    grow_checkpoint(source, tmp_path / "c", Target(vocab=3000), execution=Execution(init_std=2.0))
    weights = logical_weights(config, SEED)
    for table in TABLES[: 1 if config.tied else 2]:
        old = weights[table]
        for folder, spread in (("b", old.std()), ("c", 2.0)):
            noise = stored_arrays(tmp_path / folder)[table][config.vocab : 3000] - old.mean(0)
            assert noise.std() == pytest.approx(ROW_NOISE * spread, rel=0.03)
            assert np.abs(noise.mean()) < 0.03 * noise.std()
            assert len(np.unique(noise, axis=0)) == len(noise)


def test_rows_depend_neither_on_the_layout_nor_on_how_the_work_is_cut(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    wanted = target(config, "copy", 40, 30)
    for tp in (1, 4):
        make_checkpoint(tmp_path / f"source {tp}", config, even(config, tp), seed=SEED)
    cuts = {"whole": Execution(), "three workers": SmallBlocks(elements=61, workers=3)}
    found: list[Mapping[str, Array]] = []
    for tp in (1, 4):
        for name, execution in cuts.items():
            out = tmp_path / f"{name} {tp}"
            source = tmp_path / f"source {tp}"
            grow_checkpoint(source, out, wanted, LayoutRequest(tp=2), execution)
            found.append(stored_arrays(out))
    for arrays in found[1:]:
        assert all(same_bits(arrays[name], found[0][name]) for name in found[0])


def test_rows_of_half_precision_are_the_cast_of_those_of_the_masters(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    source = make_checkpoint(tmp_path / "a", config, dtype="bfloat16", optimizer=True)
    before = states(source)["master"]
    grow_checkpoint(source, tmp_path / "b", Target(vocab=90))
    after = states(tmp_path / "b")
    for table in TABLES:
        fresh = after["master"][table][config.vocab : 90]
        mean = before[table][: config.vocab].astype(np.float64).mean(0)
        assert np.abs(fresh - mean).max() < 7 * ROW_NOISE * before[table].std()
        weight = after["weight"][table]
        assert same_bits(weight, after["master"][table].astype(weight.dtype))
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not after[moment][table][config.vocab : 90].any()


@pytest.mark.parametrize("file_format", ["megatron", "torch_dist", "huggingface"])
def test_every_format_holds_the_same_rows(file_format: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", dtype="float32", seed=SEED)
    grow_checkpoint(source, tmp_path / "b", Target(vocab=90))
    grow_checkpoint(source, tmp_path / "c", Target(vocab=90), file_format=file_format)
    one, other = (stored_arrays(tmp_path / name)["embedding"][:90] for name in "bc")
    assert same_bits(one, other)


def test_what_is_drawn_stays_what_it_was(tmp_path: Path) -> None:
    """Rows as they were made before there was a choice: verify must derive them again."""
    source = make_checkpoint(tmp_path / "a", "tele", seed=SEED)
    grow_checkpoint(source, tmp_path / "b", Target(vocab=60, fresh_rows=FreshRows.DRAWN, seed=3))
    rows = normal(3, "head", [np.arange(51, 60), np.arange(12)])
    spread = float(np.float32(logical_weights(CONFIGS["tele"], SEED)["head"].std()))
    assert stored_arrays(tmp_path / "b")["head"][51:60] == pytest.approx(rows * spread, rel=1e-6)
