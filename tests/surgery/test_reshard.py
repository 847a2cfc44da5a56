"""Resharding moves bits and changes none; growth does not depend on how the work is cut."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
import torch
from growing import SmallBlocks, all_files, grow_checkpoint, rank_arrays, same_bits, stored_arrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pico import CONFIGS, even, make_checkpoint, padded_vocab, stored_weights
from sampling import first
from strategies import Case, any_config, as_request, cases, examples, layouts_of

from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.model.arrays import Array
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest

DTYPES = ("float64", "float32", "bfloat16", "float16")


def bits(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.slow
@examples(40)
@given(st.data())
def test_there_and_back_is_bit_equal(data: DataObject) -> None:
    config = data.draw(any_config())
    first, second = data.draw(layouts_of(config)), data.draw(layouts_of(config))
    dtype = data.draw(st.sampled_from(DTYPES))
    naming, extra = data.draw(st.sampled_from([("local", "none"), ("fused", "bytesio")]))
    with TemporaryDirectory() as folder:
        a, b, c = (Path(folder, name) for name in "abc")
        make_checkpoint(a, config, first, dtype=dtype, naming=naming, extra_state=extra)
        grow_checkpoint(a, b, request=as_request(second))
        true = stored_weights(config, 0, dtype)
        for name, stored in stored_arrays(b).items():
            assert same_bits(stored[: len(true[name])], bits(true[name])), name
        grow_checkpoint(b, c, request=as_request(first))
        there, back = rank_arrays(a), rank_arrays(c)
        assert there.keys() == back.keys()
        room = padded_vocab(config, second.tp) >= padded_vocab(config, first.tp)
        for name, content in there.items():
            padded = "word_embeddings" in name or "output_layer" in name
            assert content == back[name] or (padded and not room), name


def test_padding_is_kept_where_there_is_room_and_zero_elsewhere(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    a = make_checkpoint(tmp_path / "a", config, even(config, tp=1))
    grow_checkpoint(a, tmp_path / "b", request=LayoutRequest(tp=4))
    one, four = stored_arrays(a), stored_arrays(tmp_path / "b")
    for name in ("embedding", "head"):
        assert (len(one[name]), len(four[name])) == (56, 64)
        assert one[name][config.vocab :].all()
        assert same_bits(one[name], four[name][:56])
        assert not four[name][56:].any()


def test_args_come_back_as_they_were(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    uneven = Layout(2, 2, 1, (1, 3))
    a = make_checkpoint(tmp_path / "a", config, uneven)
    grow_checkpoint(a, tmp_path / "b", request=LayoutRequest(tp=1, pp=2, vpp=2))
    grow_checkpoint(tmp_path / "b", tmp_path / "c", request=as_request(uneven))
    contents = [
        torch.load(path / "iter_0000030/mp_rank_00_000/model_optim_rng.pt", weights_only=False)
        for path in (a, tmp_path / "c")
    ]
    before, after = (vars(content["args"]) for content in contents)
    assert after.pop("flmgrow_true_vocab_size") == config.vocab
    way_to_say = ("first_pipeline_num_layers", "last_pipeline_num_layers", "parallel_layout")
    different = {name for name in before if before[name] != after.get(name)}
    assert all(name.endswith(way_to_say) for name in different)


@pytest.mark.slow
@examples(20)
@given(cases())
def test_growth_and_resharding_commute_bitwise(case: Case) -> None:
    if case.refused:
        return
    target = replace(case.target, vocab=None)
    layers = target.layers or case.config.layers
    between = Layout(1, 1, 1, (layers,))
    single = Layout(1, 1, 1, (case.config.layers,))
    with TemporaryDirectory() as folder:
        a, grown, moved = (Path(folder, name) for name in ("a", "grown", "moved"))
        make_checkpoint(a, case.config, case.layout)
        grow_checkpoint(a, grown, target, as_request(between))
        grow_checkpoint(a, moved, request=as_request(single))
        grow_checkpoint(grown, Path(folder, "1"), request=as_request(case.new_layout))
        grow_checkpoint(moved, Path(folder, "2"), target, as_request(case.new_layout))
        assert rank_arrays(Path(folder, "1")) == rank_arrays(Path(folder, "2"))


@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
def test_padding_that_a_layout_adds_stays_zero_through_growth(method: str, tmp_path: Path) -> None:
    """Nothing is drawn into padding, so it is the same whether it came before or after."""
    config = CONFIGS["tele"]
    a = make_checkpoint(tmp_path / "a", config)
    target = Target(hidden=30, methods=parse_methods(method))
    grow_checkpoint(a, tmp_path / "moved", request=LayoutRequest(tp=4))
    grow_checkpoint(tmp_path / "moved", tmp_path / "1", target)
    grow_checkpoint(a, tmp_path / "grown", target)
    grow_checkpoint(tmp_path / "grown", tmp_path / "2", request=LayoutRequest(tp=4))
    assert rank_arrays(tmp_path / "1") == rank_arrays(tmp_path / "2")
    for name in ("embedding", "head"):
        assert not stored_arrays(tmp_path / "1")[name][56:].any()


@pytest.mark.parametrize("method", first(1, ["copy", "zero", "mask"]))
@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_the_same_model_grows_from_every_layout(name: str, method: str, tmp_path: Path) -> None:
    """One pass, or growing first, or resharding first: the same bits, padding included."""
    config = CONFIGS[name]
    target = Target(
        hidden=24 if method == "copy" else 20, ffn=32, kv_groups=8, layers=6,
        methods=parse_methods(method), seed=3,
    )  # fmt: skip
    end = LayoutRequest(4, 2, 1, (2, 4))
    results = []
    for number, layout in enumerate(
        (even(config), even(config, 2, 2), Layout(4, 2, 2, (2, 0, 1, 1)))
    ):
        a = make_checkpoint(tmp_path / f"a{number}", config, layout)
        grow_checkpoint(a, tmp_path / f"b{number}", target, end)
        results.append(stored_arrays(tmp_path / f"b{number}"))
    for other in results[1:]:
        for tensor, stored in results[0].items():
            rows = config.vocab if tensor in ("embedding", "head") else len(stored)
            assert same_bits(stored[:rows], other[tensor][:rows]), tensor


@pytest.mark.parametrize("method", first(1, ["mask", "zero", "copy"]))
@pytest.mark.parametrize("name", ["flm", "tele"])
def test_workers_and_memory_do_not_change_a_byte(name: str, method: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    a = make_checkpoint(tmp_path / "a", config, even(config, 2, 2), dtype="float32")
    target = Target(
        hidden=20, ffn=28, heads=12, layers=5, vocab=60,
        untie=config.tied, methods=parse_methods(method),
    )  # fmt: skip
    outputs = []
    for number, execution in enumerate(
        (Execution(), Execution(workers=3), SmallBlocks(workers=3), SmallBlocks(elements=50))
    ):
        out = tmp_path / str(number)
        grow_checkpoint(a, out, target, LayoutRequest(tp=1, pp=1), execution)
        outputs.append(all_files(out))
    assert MANIFEST in outputs[0]
    assert all(output == outputs[0] for output in outputs)


def test_another_seed_changes_fresh_values_alone(tmp_path: Path) -> None:
    config = CONFIGS["gpt"]
    a = make_checkpoint(tmp_path / "a", config)
    for seed in (0, 1):
        grow_checkpoint(a, tmp_path / str(seed), Target(hidden=20, seed=seed))
    one, two = stored_arrays(tmp_path / "0"), stored_arrays(tmp_path / "1")
    same = one["query"] == two["query"]
    assert same[..., :12].all()
    assert not same[..., 12:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_casting_rounds_each_value_once(dtype: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    a = make_checkpoint(tmp_path / "a", config)
    grow_checkpoint(a, tmp_path / "b", dtype=dtype)
    for name, tensor in stored_weights(config).items():
        cast = bits(tensor.to(getattr(torch, dtype)))
        assert same_bits(stored_arrays(tmp_path / "b")[name][: len(cast)], cast)


def test_extra_state_follows_its_layer(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    a = make_checkpoint(
        tmp_path / "a", config, even(config, 2, 2), naming="fused", extra_state="bytes"
    )
    grow_checkpoint(a, tmp_path / "b", Target(layers=6), LayoutRequest(tp=1, pp=1))
    with open_megatron(tmp_path / "b") as opened:
        root = rank_content(opened, (0, 0))
        assert isinstance(root, dict)
        state = root["model"]
    names = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1")
    for layer in range(6):
        for name in (*names, "mlp.linear_fc2"):
            assert state[f"decoder.layers.{layer}.{name}._extra_state"] == b"scales"
    assert state["output_layer._extra_state"] == b"scales"


def test_zero_stays_zero_whatever_its_sign(tmp_path: Path) -> None:
    """Masks, centring and scales must not write -0.0, which another order of work would not."""
    config = CONFIGS["flm"]
    a = make_checkpoint(tmp_path / "a", config)
    target = Target(layers=6, ffn=24, methods=parse_methods("zero"))
    grow_checkpoint(a, tmp_path / "b", target)
    for stored in stored_arrays(tmp_path / "b").values():
        assert not np.signbit(stored[stored == 0]).any()
