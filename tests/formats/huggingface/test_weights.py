"""The weights of Hugging Face folders: rows, fused and transposed matrices, growth and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import accepted
from growing import SmallBlocks, all_files, grow_checkpoint, same_bits, stored_arrays, tokens_for
from hf_folders import EVERY, MODELS, OWN_HEADS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import even, logical_weights, make_checkpoint
from pico_model import DictWeights
from strategies import examples

from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.matching import family_placements
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.pieces import read_whole
from flmgrow.model.axes import full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.weights import CheckpointWeights


def numpy_tensors(family: str, config: ModelConfig, weights: Any) -> dict[str, Any]:
    """What transformers stores, made from whole logical tensors by code of its own."""
    hidden = config.hidden

    def flat(name: str, layer: int) -> Any:
        return weights[name][layer].reshape(-1, hidden)

    out: dict[str, Any] = {}
    for layer in range(config.layers):
        stem = f"transformer.h.{layer}."
        w = {
            name: values[layer] for name, values in weights.items() if len(values) == config.layers
        }
        if family == "gpt2":
            qkv = [flat(name, layer).T for name in ("query", "key", "value")]
            out[stem + "attn.c_attn.weight"] = np.concatenate(qkv, 1)
            biases = [w[f"{name}.bias"].reshape(-1) for name in ("query", "key", "value")]
            out[stem + "attn.c_attn.bias"] = np.concatenate(biases)
            out[stem + "attn.c_proj.weight"] = w["attention_out"].reshape(hidden, -1).T
            out[stem + "mlp.c_fc.weight"] = w["up"].T
            out[stem + "mlp.c_proj.weight"] = w["down"].T
        else:
            stem = f"gpt_neox.layers.{layer}."
            heads = [
                w[name][group].reshape(-1, hidden)
                for group in range(config.kv_groups)
                for name in ("query", "key", "value")
            ]
            out[stem + "attention.query_key_value.weight"] = np.concatenate(heads)
            out[stem + "attention.dense.weight"] = w["attention_out"].reshape(hidden, -1)
    return out  # fmt: skip


def ranks(config: ModelConfig) -> int:
    """The tensor ranks of a test: two, unless all heads share one key."""
    return min(2, config.kv_groups)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_fused_and_transposed_matrices_lie_as_they_should(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, 2, 2))
    accepted("export", source, tmp_path / "b")
    wanted = numpy_tensors(name, config, logical_weights(config))
    with open_checkpoint(tmp_path / "b") as opened:
        found = {array.placement.key: read_whole(array) for array in opened.reader.arrays}
    for key, values in wanted.items():
        assert np.array_equal(found[key], values), key


@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_what_the_source_computes(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, ranks(config), 2), multiple=5)
    grow_checkpoint(source, tmp_path / "b", file_format="huggingface")
    tokens = tokens_for(config.vocab)
    wanted = logits(config, DictWeights(logical_weights(config)), tokens)
    with open_checkpoint(tmp_path / "b") as opened:
        assert (opened.format, opened.config, opened.padded_vocab) == (
            "huggingface", config, config.vocab
        )  # fmt: skip
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), tokens)
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_equal(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    make_checkpoint(
        tmp_path / "a", config, even(config, ranks(config)), naming="fused", multiple=12
    )
    accepted("export", tmp_path / "a", tmp_path / "b", "--shard-size", 3000)
    accepted("import", tmp_path / "b", tmp_path / "c", "--tp", ranks(config))
    before, after = stored_arrays(tmp_path / "a"), stored_arrays(tmp_path / "c")
    for key, values in before.items():
        rows = config.vocab if key in ("embedding", "head") else None
        assert same_bits(values[:rows], after[key][:rows]), key
    accepted("export", tmp_path / "c", tmp_path / "d", "--shard-size", 3000)
    histories = {"flmgrow.json", "README.md"}
    shards = [
        {n: c for n, c in all_files(tmp_path / x).items() if n not in histories} for x in "bd"
    ]
    assert len(shards[0]) > 5
    assert shards[0] == shards[1]


@examples(15)
@given(data=st.data())
def test_any_growth_is_the_same_from_either_format(
    data: DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("growth")
    name = data.draw(st.sampled_from(list(MODELS)))
    config = MODELS[name]
    source = make_checkpoint(place / "a", config, naming="fused", multiple=1)
    target = Target(
        layers=config.layers + data.draw(st.integers(0, 2)),
        ffn=config.ffn + data.draw(st.sampled_from([0, 4, 20])),
        hidden=config.hidden * data.draw(st.sampled_from([1, 2])),
        heads=config.heads * 2 if name in OWN_HEADS else None,
        methods=parse_methods("copy"),
        seed=data.draw(st.integers(0, 2)),
    )
    if name in OWN_HEADS:
        target = replace(target, hidden=2 * config.hidden)
    grow_checkpoint(source, place / "hf", file_format="huggingface")
    grow_checkpoint(source, place / "grown", target)
    grow_checkpoint(place / "hf", place / "grown-hf", target)
    wanted, found = stored_arrays(place / "grown"), stored_arrays(place / "grown-hf")
    assert wanted.keys() == found.keys()
    assert all(same_bits(wanted[key], found[key]) for key in wanted)


@pytest.mark.parametrize("elements", [5, 60])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "flm"])
def test_blocks_and_workers_do_not_change_a_byte(name: str, elements: int, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", MODELS[name], even(MODELS[name], 2))
    target = Target(hidden=32, heads=8, layers=3, methods=parse_methods("copy"))
    for out, execution in (
        ("whole", Execution()),
        ("small", SmallBlocks(elements=elements, workers=3)),
    ):
        grow_checkpoint(source, tmp_path / out, target, None, execution, None, "huggingface")
    assert all_files(tmp_path / "whole") == all_files(tmp_path / "small")


def test_every_row_is_used_by_some_model() -> None:
    used: dict[object, set[object]] = {family.rows: set() for family in FAMILIES.values()}
    for name, config in EVERY.items():
        variants = [config, replace(config, tied=not config.tied)]
        if name == "llama":
            variants.append(replace(config, linear_bias=True, qkv_bias=True))
        if name == "olmo2":
            variants.append(replace(config, qkv_bias=True, out_bias=True))
        for variant in variants:
            sizes = variant.sizes
            for placement in family_placements(FAMILIES[name], variant, sizes, variant.tied):
                used[FAMILIES[name].rows].add(placement.row)
    for rows, seen in used.items():
        assert isinstance(rows, tuple)
        # The norms' biases stand there for LayerNorm; Llama's norms have none.
        unused = [row for row in rows if row not in seen]
        assert all("norm.bias" in row.parts[0] for row in unused), unused


@pytest.mark.parametrize("name", MODELS)
def test_placements_tile_every_tensor(name: str) -> None:
    config = MODELS[name]
    tensors = logical_tensors(config)
    held = {n: np.zeros(t.shape(config.sizes), int) for n, t in tensors.items()}
    for placement in family_placements(FAMILIES[name], config, config.sizes):
        for segment in placement.segments:
            shape = held[segment.tensor].shape
            held[segment.tensor][segment.box.relative_to(full_box(shape))] += 1
    assert all((counts == 1).all() for counts in held.values())
