"""From what a user wants to axis maps: sizes, methods, and the refusals that name the way out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pico import CONFIGS

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import padded_size
from flmgrow.model.axes import FRESH, PADDING, Axis, Fill, Role
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow, parse_methods
from flmgrow.operators.units import head_target
from flmgrow.operators.vocab import vocab_map


def grown(config: ModelConfig | str, methods: str = "mask", **wanted: object) -> Growth:
    model = CONFIGS[config] if isinstance(config, str) else config
    target = Target(methods=parse_methods(methods), **wanted)  # type: ignore[arg-type]
    return grow(model, target, 56, 56)


def test_methods_are_parsed_per_dimension() -> None:
    assert parse_methods("copy") == dict.fromkeys(Dimension, "copy")
    assert parse_methods("width=copy, ffn=zero") == {
        Dimension.WIDTH: "copy",
        Dimension.HEADS: "mask",
        Dimension.FFN: "zero",
        Dimension.DEPTH: "mask",
    }
    assert parse_methods("zero,depth=stack")[Dimension.DEPTH] == "stack"


@pytest.mark.parametrize(
    ("text", "named"),
    [("magic", "magic"), ("ffn=stack", "stack"), ("size=copy", "size"), ("stack", "stack")],
)
def test_an_unknown_method_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_methods(text)


@pytest.mark.parametrize(
    "wanted", [{"hidden": 11}, {"ffn": 19}, {"layers": 3}, {"vocab": 50}, {"kv_groups": 3}]
)
def test_nothing_shrinks(wanted: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the source has"):
        grown("tele", **wanted)


@pytest.mark.parametrize(
    ("name", "heads", "groups", "expected"),
    [
        ("tele", 6, None, (6, 1)),
        ("tele", None, 6, (6, 1)),
        ("tele", 8, 4, (4, 2)),
        ("llama", 12, None, (4, 3)),
        ("llama", None, 6, (6, 2)),
        ("llama", 18, 6, (6, 3)),
        ("nemotron", 6, None, (1, 6)),
        ("nemotron", None, None, (1, 4)),
    ],
)
def test_groups_follow_heads_only_without_grouped_queries(
    name: str, heads: int | None, groups: int | None, expected: tuple[int, int]
) -> None:
    assert head_target(CONFIGS[name], heads, groups) == expected


def test_heads_that_no_groups_can_share_are_refused() -> None:
    with pytest.raises(UsageError, match="10 heads cannot be shared by 4"):
        head_target(CONFIGS["llama"], 10, None)
    with pytest.raises(UsageError, match="leaves 1 per group"):
        grown("llama", heads=8, kv_groups=8)


def test_effective_multipliers_stay() -> None:
    growth = grown("flm", hidden=30)
    assert growth.new.multipliers.output == pytest.approx(1.7 * 30 / 12)
    assert growth.new.logit_factor == pytest.approx(CONFIGS["flm"].logit_factor)


@pytest.mark.parametrize(
    ("method", "hidden", "factor"),
    [("mask", 20, 1.0), ("zero", 20, 12 / 20), ("copy", 24, 1.0), ("copy", 30, 24 / 30)],
)
def test_epsilon_follows_the_mean_of_squares(method: str, hidden: int, factor: float) -> None:
    growth = grown("tele", f"width={method}", hidden=hidden)
    assert growth.new.norm_eps == pytest.approx(CONFIGS["tele"].norm_eps * factor)


def test_what_changes_the_function_says_so() -> None:
    assert not grown("llama", "depth=stack", layers=8).preserves
    notes = grown("llama", "depth=stack", layers=8).notes
    assert any("not function-preserving" in note for note in notes)
    assert grown("llama", layers=8).preserves
    assert any("stock trainer" in note for note in grown("llama", layers=8).notes)


@pytest.mark.parametrize(
    ("method", "placement", "sources"),
    [
        ("zero", "end", [0, 1, 2, 3, 3, 3]),
        ("zero", "interleave", [0, 1, 1, 2, 3, 3]),
        ("zero", "0,0,1,2,2,3", [0, 0, 1, 2, 2, 3]),
        ("stack", "end", [0, 1, 2, 3, 0, 1]),
        ("interleave", "end", [0, 0, 1, 2, 2, 3]),
    ],
)
def test_layers_go_where_they_are_told(method: str, placement: str, sources: list[int]) -> None:
    growth = grown("llama", f"depth={method}", layers=6, depth_placement=placement)
    assert growth.maps[Axis.LAYER].source.tolist() == sources


@pytest.mark.parametrize("pattern", ["0,1,2,3", "1,0,2,3,3,3", "0,1,2,4,4,3", "0,1,2,2,2,2", "x"])
def test_a_pattern_must_keep_every_layer_in_order(pattern: str) -> None:
    with pytest.raises(UsageError, match="depth placement"):
        grown("llama", layers=6, depth_placement=pattern)


def test_random_layers_are_fresh_and_repeated_ones_never() -> None:
    layers = grown("llama", layers=6, new_layers="random").maps[Axis.LAYER]
    assert layers.source.tolist() == [0, 1, 2, 3, FRESH, FRESH]
    assert layers.donors.tolist() == [0, 1, 2, 3, 3, 3]
    stacked = grown("llama", "depth=stack", layers=6, new_layers="random").maps[Axis.LAYER]
    assert (stacked.source >= 0).all()


def test_zero_and_copy_of_units_leave_exactly_one_side_of_a_path_at_zero() -> None:
    ffn = grown("llama", "ffn=zero", ffn=28).maps[Axis.FFN]
    assert ffn.fill == {Role.READS: Fill.ZERO}
    copied = grown("llama", "ffn=copy", ffn=28).maps[Axis.FFN]
    assert copied.source.tolist() == [*range(20), *range(8)]
    assert np.bincount(copied.source, copied.scale[Role.READS]) == pytest.approx(np.ones(20))


@pytest.mark.parametrize(("method", "factor"), [("zero", 12 / 30), ("copy", 24 / 30)])
def test_what_query_norms_are_given_follows_the_epsilon(method: str, factor: float) -> None:
    growth = grown("qk", f"width={method}", hidden=30)
    assert growth.new.norm_eps == pytest.approx(CONFIGS["qk"].norm_eps * factor)
    scale = growth.maps[Axis.HEAD_DIM].scale
    assert scale.keys() == {Role.NORMED}
    assert scale[Role.NORMED] == pytest.approx(np.full(4, factor**0.5))
    for untouched in (grown("qk", "width=copy", hidden=36), grown("tele", "zero", hidden=30)):
        assert Axis.HEAD_DIM not in untouched.maps


def test_centring_a_shared_table_is_refused_with_the_ways_out() -> None:
    with pytest.raises(UsageError, match="shared table") as refusal:
        grown("flm", "width=zero", hidden=20)
    assert "untie=True" in refusal.value.hint
    untied = grown("flm", "width=zero", hidden=20, untie=True)
    assert untied.renamed == {"head": "embedding"}
    assert not untied.new.tied
    with pytest.raises(UsageError, match="already has a separate head"):
        grown("gpt", untie=True)


def test_the_vocabulary_is_padded_and_keeps_padding_where_it_can() -> None:
    assert [padded_size(51, 8, tp) for tp in (1, 2, 4)] == [56, 64, 64]
    assert vocab_map(51, 56, 51, 56).is_identity
    assert vocab_map(51, 56, 53, 64).source.tolist() == [
        *range(51), FRESH, FRESH, 53, 54, 55, *[PADDING] * 8,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="vocabulary of 50, the source has 51"):
        vocab_map(51, 56, 50, 56)


def test_dimensions_do_not_depend_on_each_other() -> None:
    config = replace(CONFIGS["gpt"])
    one = grown(config, "copy", hidden=20, ffn=30, layers=6, heads=6)
    for wanted in ({"hidden": 20}, {"ffn": 30}, {"layers": 6}, {"heads": 6}):
        alone = grown(config, "copy", **wanted)
        for axis, axis_map in alone.maps.items():
            assert np.array_equal(axis_map.source, one.maps[axis].source)
            assert all(
                np.array_equal(factors, one.maps[axis].scale[role])
                for role, factors in axis_map.scale.items()
            )
