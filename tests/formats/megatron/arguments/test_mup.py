"""megatron-core's arguments for muP: read, and written so that they mean the same in any width."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, arguments, even
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.formats.megatron.arguments.mup import mup_options
from flmgrow.formats.megatron.arguments.mup_rows import NATIVE_ROWS
from flmgrow.formats.megatron.arguments.run_config import read_run_config
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig, Multipliers

PADDED = 64
PLAIN = replace(CONFIGS["tele"], rotary=replace(CONFIGS["tele"].rotary, base=10000.0))


def args_of(**changes: object) -> dict[str, Any]:
    return {**vars(arguments(PLAIN, even(PLAIN), multiple=PADDED)), "use_mup": True, **changes}


def read(args: dict[str, Any]) -> ModelConfig:
    return read_config(args, "file", PADDED)


def logit_factor(args: dict[str, Any]) -> float:
    """What megatron-core 0.19 multiplies logits by (transformer_config.py)."""
    width = args["hidden_size"] / (args.get("mup_base_hidden_size") or args["hidden_size"])
    factor: float = args.get("mup_output_mult", 1.0)
    return 1.0 / width if factor == 1.0 and width != 1.0 else factor


def widened(config: ModelConfig, hidden: int) -> ModelConfig:
    return config.with_sizes({**config.sizes, Axis.HIDDEN: hidden})


OUTPUTS = st.one_of(st.sampled_from([1.0, 0.5, 2.0, 1.0000000000000002]), st.floats(1e-3, 1e3))


@examples(200)
@given(
    base=st.one_of(st.none(), st.integers(1, 99)),
    output=OUTPUTS,
    widths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
)
def test_any_growth_keeps_what_logits_are_multiplied_by(
    base: int | None, output: float, widths: list[int]
) -> None:
    """One growth after another; what is written says the grown model to the last bit."""
    args = args_of(mup_base_hidden_size=base, mup_output_mult=output)
    config = read(args)
    first = logit_factor(args)
    assert config.logit_factor == pytest.approx(first, rel=1e-15)
    for hidden in widths:
        config = widened(config, hidden)
        args = written_arguments(args, config)
        assert read(args) == config
        assert args["hidden_size"] == hidden
        assert logit_factor(args) == pytest.approx(first, rel=2e-15)
        assert written_arguments(args, config) == args


@examples(100)
@given(base=st.one_of(st.none(), st.integers(1, 99)), output=OUTPUTS)
def test_what_does_not_grow_keeps_its_arguments(base: int | None, output: float) -> None:
    args = args_of(mup_base_hidden_size=base, mup_output_mult=output)
    written = written_arguments(args, replace(read(args), layers=9, ffn=33))
    names = [row.name for row in NATIVE_ROWS if row.name in args]
    assert [written[name] for name in names] == [args[name] for name in names]


def test_the_multiplier_as_it_was_would_be_another_model() -> None:
    """The control, and the trap: 1 is what megatron-core replaces."""
    args = args_of()
    written = written_arguments(args, widened(read(args), 24))
    assert (logit_factor(args), written["mup_base_hidden_size"]) == (1.0, 12)
    assert 1.0 < logit_factor(written) < 1.0 + 1e-15
    assert logit_factor({**written, "mup_output_mult": 1.0}) == 0.5


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Multipliers(mup_base_width=12, attention=1 / 4)),  # heads of 4
        ({"mup_attn_scale_power": 0.5}, Multipliers(mup_base_width=12)),
        ({"mup_base_head_dim": 4}, Multipliers(mup_base_width=12)),
        ({"mup_base_head_dim": 9.0}, Multipliers(mup_base_width=12, attention=3 / 4)),
        ({"softmax_scale": 0.3}, Multipliers(mup_base_width=12, attention=0.3)),
        (
            {"mup_base_hidden_size": 6, "mup_output_mult": 0.25, "mup_embedding_mult": 3.0},
            Multipliers(embedding=3.0, output=0.5, mup_base_width=6, attention=1 / 4),
        ),
        ({"use_mup": False, "mup_output_mult": 0.25, "mup_base_head_dim": 9.0}, Multipliers()),
        ({"use_mup": None, "mup_base_hidden_size": 3}, Multipliers()),
    ],
)
def test_what_the_arguments_mean(given: dict[str, Any], wanted: Multipliers) -> None:
    assert read(args_of(**given)).multipliers == wanted


def test_older_versions_are_told_what_they_always_were() -> None:
    """Who does not use megatron-core's arguments gets none of them."""
    args = args_of()
    del args["use_mup"]
    config = replace(PLAIN, multipliers=Multipliers(2.0, 3.0, 6))
    written = written_arguments(args, config)
    assert not written.keys() & {row.name for row in NATIVE_ROWS}
    assert [written[f"flmgrow_{name}"] for name in (
        "embedding_multiplier", "output_multiplier", "mup_base_width"
    )] == [2.0, 3.0, 6]  # fmt: skip


TOLD: list[tuple[dict[str, Any], int, str]] = [
    ({}, 24, "--mup-base-hidden-size 12 --mup-output-mult 1.0000000000000002"),
    ({"mup_base_hidden_size": 6}, 24, "--mup-output-mult 0.5"),
    ({"mup_base_hidden_size": 24}, 24, "--mup-output-mult 2.0"),
    ({"mup_base_hidden_size": 6, "mup_output_mult": 0.25}, 24, ""),
    ({"mup_base_hidden_size": 6}, 12, ""),
    ({"use_mup": False}, 24, ""),
    ({"use_mup": None, "flmgrow_mup_base_width": 6}, 24, ""),
]


@pytest.mark.parametrize(("changes", "hidden", "options"), TOLD)
def test_what_megatron_must_be_told_anew(
    changes: dict[str, Any], hidden: int, options: str
) -> None:
    args = args_of(**changes)
    assert mup_options(args, written_arguments(args, widened(read(args), hidden))) == options


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_mup": "yes"}, "args.use_mup: found 'yes', wanted True or False"),
        ({"mup_output_mult": "2"}, "args.mup_output_mult: found '2'"),
        ({"mup_base_hidden_size": -4}, "args.mup_base_hidden_size: found -4"),
        ({"mup_base_hidden_size": 0}, "args.mup_base_hidden_size: found 0"),
        ({"mup_embedding_mult": 2.0, "position_embedding_type": "learned_absolute"},
         "args.mup_embedding_mult: found 2, wanted 1 where args.position_embedding_type is"),
        ({"flmgrow_output_multiplier": 2.0}, "args.flmgrow_output_multiplier: found 2.0, wanted 1"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCheckpointError) as refusal:
        read(args_of(**changes))
    assert says in str(refusal.value.with_hint("").message)


def test_a_run_config_says_it_too(tmp_path: Path) -> None:
    """Megatron-Bridge's file, with megatron-core's own names."""
    path = tmp_path / "run_config.yaml"
    path.write_text(
        "model:\n  num_layers: 4\n  num_attention_heads: 4\n  use_mup: true\n"
        "  mup_base_hidden_size: 6\n  mup_output_mult: 0.25\n"
    )
    told, _ = read_run_config(path)
    given = {name: told[name] for name in ("use_mup", "mup_base_hidden_size", "mup_output_mult")}
    assert read(args_of(**given)).multipliers == Multipliers(
        output=0.5, mup_base_width=6, attention=1 / 4
    )
