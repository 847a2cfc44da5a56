"""``--set-arg`` and ``--args-from``: checkpoints without arguments, or with wrong ones, are read
right or refused, and what is written says how.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, accepted, flmgrow, refused
from damage import edit_all, rank_files, with_arguments
from hf_folders import make_folder
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint

from flmgrow.formats.arguments_elsewhere import arguments_from
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig

RUN_CONFIG = """
model:
  _target_: megatron.bridge.models.gpt_provider.GPTModelProvider
  num_layers: 4
  hidden_size: 12
  ffn_hidden_size: 20
  num_attention_heads: 8
  num_query_groups: 4
  kv_channels: 4
  seq_length: 16
  normalization: RMSNorm
  layernorm_epsilon: 0.01
  gated_linear_unit: true
  activation_func:
    _target_: torch.nn.functional.silu
    _call_: false
  add_bias_linear: false
  position_embedding_type: rope
  rotary_base: 10000
  rotary_percent: 1.0
  share_embeddings_and_output_weights: true
  vocab_size: 51
  make_vocab_size_divisible_by: 8
  num_moe_experts: null
train:
  train_iters: 10
"""
HAND = {
    "num_attention_heads": 8,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "norm_epsilon": 0.01,
    "max_position_embeddings": 16,
    "vocab_size": 51,
    "make_vocab_size_divisible_by": 8,
}


def options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set-arg", f"{name}={value}")]


def config_of(path: Path, **given: object) -> ModelConfig:
    with open_checkpoint(path, None, ReadOptions(given_arguments=given)) as opened:
        return opened.config


def without_args(path: Path) -> Path:
    """Take the arguments, and the version beside them, out of a distributed checkpoint."""
    (file,) = path.rglob("common.pt")
    torch.save({"iteration": 30}, file)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A distributed checkpoint that Megatron-Bridge's converter wrote: no arguments."""
    path = without_args(make_dist_checkpoint(tmp_path, "llama"))
    (path / "iter_0000030" / "run_config.yaml").write_text(RUN_CONFIG)
    return path


def pasted(outcome: Outcome) -> list[str]:
    """The options that a hint offers."""
    return shlex.split(outcome.err.splitlines()[-1].partition("pass ")[2])


def test_a_file_beside_the_weights_is_proposed_and_does(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = refused(3, r"common.pt: has no args", "reshard", bare, out, "--tp", 2, place=tmp_path)
    done = accepted("reshard", bare, out, "--tp", 2, *pasted(outcome), "--format", "megatron")
    assert "note: " not in done.err
    assert config_of(out) == CONFIGS["llama"]
    written = torch.load(rank_files(out)[0], weights_only=False)
    assert (written["args"].num_layers, written["args"].norm_epsilon) == (4, 0.01)
    assert (written["checkpoint_version"], written["args"].padded_vocab_size) == (3.0, 64)


def test_what_was_given_is_recorded_and_given_again_by_verify(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    accepted("expand", bare, out, "--ffn-hidden-size", 24, "--method", "zero", *options(HAND))
    manifest = json.loads((out / "flmgrow.json").read_text())
    assert manifest["source"]["arguments"] == HAND
    proof = accepted("verify", bare, out)
    assert "elements" in proof.out
    assert "not derived" not in proof.out
    other = flmgrow("verify", bare, out, *options({**HAND, "norm_epsilon": 0.02}))
    assert (other.code, "norm_eps" in other.out) == (1, True)
    assert config_of(out).ffn == 24


@pytest.mark.parametrize("name", [name for name in HAND if "vocab_size" not in name])
def test_what_no_array_tells_must_be_given(bare: Path, tmp_path: Path, name: str) -> None:
    given = {key: value for key, value in HAND.items() if key != name}
    outcome = refused(3, rf"has no args.*{name}", "inspect", bare, *options(given), place=tmp_path)
    assert f"--set-arg {name}=" in outcome.err


def test_ranks_without_arguments_tell_their_layout(tmp_path: Path) -> None:
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    source = make_checkpoint(tmp_path / "a", "llama", layout)
    edit_all(source, lambda content: content.pop("args"))
    assert config_of(source, **HAND) == CONFIGS["llama"]
    accepted("reshard", source, tmp_path / "b", *options(HAND), "--tp", 1, "--pp", 1)
    assert config_of(tmp_path / "b") == CONFIGS["llama"]


@pytest.mark.parametrize("kind", ["config", "folder", "legacy", "distributed"])
def test_the_same_model_elsewhere_says_what_it_is(
    tmp_path: Path, kind: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: dict[str, Callable[[], Path]] = {
        "legacy": lambda: make_checkpoint(tmp_path / "b", "llama", even(CONFIGS["llama"], tp=2)),
        "distributed": lambda: make_dist_checkpoint(tmp_path / "b", "llama", tp=2),
    }
    if kind in make:
        found, notes = arguments_from(make[kind]())
        assert config_of(bare, **found) == CONFIGS["llama"]
    else:
        folder = make_folder(tmp_path / "hf")
        found, notes = arguments_from(folder if kind == "folder" else folder / "config.json")
        with open_checkpoint(folder) as opened:
            config = opened.config
        out = without_args(make_dist_checkpoint(tmp_path / "same", config))
        assert config_of(out, **found) == config
    assert notes == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_layers", r"--set-arg num_layers: wanted NAME=VALUE"),
        ("num layers=3", "wanted NAME=VALUE"),
        ("num_layer=3", r"no such argument\nhint: did you mean num_layers"),
        ("num_layers={", "is not YAML"),
    ],
)
def test_slips_are_told(tmp_path: Path, bare: Path, text: str, says: str) -> None:
    refused(2, says, "inspect", bare, "--set-arg", text, place=tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("silu", "relu"), "activation_func relu with a gate"),
        (("num_moe_experts: null", "num_moe_experts: 8"), "does not support mixture of experts"),
        (("num_layers: 4", ""), "describes no model"),
        (("model:", "\tmodel:"), "is not YAML"),
        (("hidden_size: 12", "hidden_size: 16"), "args.hidden_size is 16, wanted 12"),
    ],
)
def test_a_run_config_of_another_model_is_refused(
    tmp_path: Path, bare: Path, change: tuple[str, str], says: str
) -> None:
    other = tmp_path / "run_config.yaml"
    other.write_text(RUN_CONFIG.replace(*change, 1))
    outcome = flmgrow("inspect", bare, "--args-from", other)
    assert outcome.code in (2, 3)
    assert says in outcome.err


def test_a_short_run_config_is_taken_as_megatron_core_has_it(tmp_path: Path, bare: Path) -> None:
    other = tmp_path / "run_config.yaml"
    lines = RUN_CONFIG.replace("    _target_: torch.nn.functional.silu\n    _call_: false\n", "")
    dropped = ("activation_func", "rotary", "seq_length", "layernorm_epsilon")
    other.write_text(
        "\n".join(line for line in lines.splitlines() if not any(d in line for d in dropped))
    )
    seen = accepted("inspect", bare, "--args-from", other)
    assert "taken to be SwiGLU" in seen.err
    assert "norm_epsilon=1e-05, rotary_base=10000, rotary_percent=1.0, max_position" in seen.err


def test_a_run_config_says_what_layers_differ_in(tmp_path: Path, bare: Path) -> None:
    other, field = tmp_path / "run_config.yaml", "  num_layers: 4\n"
    assert field in RUN_CONFIG
    more = "  window_size: [2, 0]\n  window_attn_skip_freq: 2\n  no_rope_freq: [0, 0, 0, 1]\n"
    other.write_text(RUN_CONFIG.replace(field, field + more, 1))
    seen = accepted("inspect", bare, "--args-from", other)
    assert (
        "1 x a window of 3, 1 x all before, 1 x a window of 3, 1 x all before without" in seen.out
    )


def test_a_wrong_argument_is_corrected_in_what_is_written(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", even(CONFIGS["llama"], pp=2))
    edit_all(source, with_arguments(num_layers=6))
    command = ("reshard", source, tmp_path / "b", "--pp", 1)
    outcome = refused(
        3, "num_layers is 6, wanted 4: .* 4 layers are stored", *command, place=tmp_path
    )
    accepted(*command, *pasted(outcome))
    assert config_of(tmp_path / "b") == CONFIGS["llama"]


def test_hugging_face_folders_have_no_arguments(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    says = "has no args, its config.json says the model"
    refused(2, says, "inspect", folder, "--set-arg", "num_layers=3", place=tmp_path)
    refused(2, "leave out --set-arg and --args-from", "inspect", folder, "--args-from",
            make_checkpoint(tmp_path / "a", "llama"), place=tmp_path)  # fmt: skip
    refused(2, "no such file", "inspect", folder, "--args-from", tmp_path / "x", place=tmp_path)
    refused(2, "hint: download the config.json", "inspect", folder, "--args-from", "hf://a/b",
            place=tmp_path)  # fmt: skip


def test_a_part_that_is_not_supported_is_named_before_any_argument(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "llama")

    def with_experts(content: Any) -> None:
        content.pop("args")
        content["model"]["decoder.layers.0.mlp.router.weight"] = torch.zeros(2, 12)

    edit_all(source, with_experts)
    outcome = refused(3, "router.weight: a mixture of experts", "inspect", source, place=tmp_path)
    assert "--set-arg" not in outcome.err


def test_verify_gives_arguments_to_both_where_both_have_none(bare: Path, tmp_path: Path) -> None:
    other = without_args(make_dist_checkpoint(tmp_path / "other", "llama", tp=2))
    proof = accepted("verify", bare, other, *options(HAND))
    assert "equal" in proof.out
    outcome = flmgrow("verify", bare, make_checkpoint(tmp_path / "own", "qk"), *options(HAND))
    assert outcome.code == 1


@pytest.mark.parametrize("make", [make_checkpoint, make_dist_checkpoint])
def test_a_dtype_that_the_arguments_have_wrong_is_set_as_the_hint_says(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    wrong = {"dtype": "float32", "params_dtype": torch.bfloat16}
    source = make(tmp_path / "a", CONFIGS["llama"], **wrong)
    told = refused(3, "float32, args.params_dtype says bfloat16", "inspect", source, place=tmp_path)
    hint = shlex.split(told.err.partition("pass ")[2].partition(";")[0])
    assert hint == ["--set-arg", "params_dtype=torch.float32"]
    accepted("reshard", source, tmp_path / "b", *hint)
    with open_checkpoint(tmp_path / "b") as opened:
        assert opened.dtype == "float32"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("params_dtype=bfloat16", "args.params_dtype says bfloat16"),
        ("params_dtype=bf16", "--set-arg params_dtype='bf16': wanted a dtype: torch.bfloat16"),
        ("consumed_train_samples=many", "='many': wanted a number, as 0 is"),
        ("finetune=1", "finetune=1: wanted True or False, as False is"),
        ("rope_theta=5e5", "did you mean rotary_base?"),
        ("untie_embeddings=True", "did you mean untie_embeddings_and_output_weights?"),
        ("n_layer=2", "did you mean num_layers?"),
        ("num_layer=2", "did you mean num_layers?"),
        ("colour=red", "names are those of its args"),
    ],
)
def test_a_slip_in_a_given_argument_is_told(given: str, told: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", CONFIGS["llama"], dtype="float32")
    outcome = flmgrow("inspect", source, "--set-arg", given)
    assert outcome.code in (2, 3)
    assert told in outcome.err


def test_a_given_argument_may_be_spelt_as_an_option(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", CONFIGS["llama"], num_layers=3)
    accepted("inspect", source, "--set-arg", "num-layers=4")
