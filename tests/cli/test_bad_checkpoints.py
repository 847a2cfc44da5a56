"""Arguments that contradict the weights or are not understood, and values that are none."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Outcome, accepted, flmgrow, refused
from damage import Change, State, edit, edit_all, rank_files, with_arguments, with_tensor
from pico import CONFIGS, even, make_checkpoint

GROW = ("--ffn-hidden-size", 24, "--method", "zero")
NORM = "decoder.layers.1.input_layernorm.weight"
DOWN = "decoder.layers.1.mlp.linear_fc2.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))


def expand_refused(source: Path, code: int, pattern: str, *options: object) -> Outcome:
    place = source.parent
    return refused(code, pattern, "expand", source, place / "out", *GROW, *options, place=place)


# --- layers, shapes and dtypes


def renumber(content: State) -> None:
    model = content["model"]
    for key in [key for key in model if key.startswith("decoder.layers.1.")]:
        model[key.replace("layers.1.", "layers.2.")] = model.pop(key)


def again(content: State) -> None:
    model = content["model"]
    for key in [key for key in model if key.startswith("decoder.layers.1.")]:
        model[key.replace("layers.1.", "layers.2.")] = model[key]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renumber, rf"mp_rank_01_001/.*: {NORM}: not there"),
        (again, "mp_rank_01_001/.*: decoder.layers.2.input_layernorm.weight: no such parameter"),
        (lambda content: content["model"].pop(DOWN), f"mp_rank_01_001/.*: {DOWN}: not there"),
        (
            lambda content: content["model"].update({"decoder.lora.weight": torch.zeros(1)}),
            "mp_rank_01_001/.*: decoder.lora.weight: no such parameter",
        ),
        (
            lambda content: content["model"].update({"decoder.layers.x._extra_state": 1}),
            "decoder.layers.x._extra_state: no such parameter",
        ),
        (lambda content: content["model"].update({3: 4}), "mp_rank_01_001/.*: 3: no such"),
        (lambda content: content.pop("model"), "mp_rank_01_001/.*: model: not there"),
        (lambda content: content.pop("args"), "mp_rank_01_001/.*: has no args"),
        (lambda content: content.update(args={}), "mp_rank_01_001/.*: args: found dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rank_with_other_contents_is_refused(source: Path, change: Change, says: str) -> None:
    edit(rank_files(source)[3], change)
    expand_refused(source, 3, says)


@pytest.mark.parametrize(
    "entry", [{"ema": {"w": torch.zeros(3)}}, {"model1": {"w": torch.ones(2)}}]
)
def test_tensors_nobody_knows_are_not_dropped_in_silence(source: Path, entry: State) -> None:
    edit_all(source, lambda content: content.update(entry))
    expand_refused(source, 3, f"{next(iter(entry))}: holds tensors that flmgrow does not know")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_layers": 6}, "args.num_layers is 6, wanted 4: decoder.layers: 4 layers"),
        ({"num_layers": 5}, "is 5, wanted 4: .*--set-arg num_layers=4"),
        ({"num_layers": 1 << 40}, "args.num_layers: .*at most 10000"),
        ({"tensor_model_parallel_size": 1 << 40}, "args say TP1099511627776"),
        ({"hidden_size": 1 << 40}, r"wanted 12: .*word_embeddings.weight has shape \(64, 12\)"),
        ({"hidden_size": "12"}, "args.hidden_size: found '12', wanted a positive whole number"),
        ({"hidden_size": None}, "args.hidden_size: found None"),
        ({"padded_vocab_size": 128}, r"128, wanted 64: .*word_embeddings.* shape \(64, 12\)"),
        ({"padded_vocab_size": 65}, "args.padded_vocab_size is 65, wanted 64"),
        ({"params_dtype": torch.bfloat16}, "float64, args.params_dtype says bfloat16"),
        ({"norm_epsilon": float("nan")}, "args.norm_epsilon: found nan, wanted a finite number"),
        ({"norm_epsilon": -1.0}, "norm epsilon is -1.0"),
        ({"rotary_base": 10**400}, "args.rotary_base: found 1000.*wanted a finite number"),
        ({"num_attention_heads": 7}, "7 heads are no multiple of 4 query groups"),
        (
            {"num_attention_heads": 6, "num_query_groups": 3},
            "args say 6 heads of 4 in 3 groups, .* 32 columns for queries, .* 16 rows for keys",
        ),
        ({"pipeline_model_parallel_layout": 5}, "pipeline_model_parallel_layout is no string"),
        ({"pipeline_model_parallel_layout": "Et*999999999|tL"}, "too long"),
        ({"normalization": "\x1b[31m\nerror: x" * 99}, r"args.normalization: found '\\+x1b\[31m"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_contradict_the_weights_are_refused(
    source: Path, arguments: State, says: str
) -> None:
    edit_all(source, with_arguments(**arguments))
    expand_refused(source, 3, f"mp_rank_00_000/model_optim_rng.pt: .*{says}")


def as_float32(content: State) -> None:
    content["model"] = {
        key: value.float() if isinstance(value, torch.Tensor) else value
        for key, value in content["model"].items()
    }


def test_ranks_of_two_dtypes_are_refused(source: Path) -> None:
    edit(rank_files(source)[2], as_float32)
    expand_refused(source, 3, "mp_rank_01_000/.*word_embeddings.weight: dtype float32, elsewhere")


def test_tensors_of_two_dtypes_are_refused(source: Path) -> None:
    for layer in (0, 1):
        key = f"decoder.layers.{layer}.input_layernorm.weight"
        edit_all(source, with_tensor(key, lambda weight: weight.float()))
    says = "decoder.layers.0.input_layernorm.weight: dtype float32, .*word_emb.* is float64"
    expand_refused(source, 3, says)


# --- what the arguments say of the model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("my_new_attention_gate", True),
        ("flmgrow_from_the_future", 1),
        ("attention_\x1b[31m\nerror: no", [["deep"] * 9] * 9),
    ],
)
def test_what_flmgrow_does_not_understand_is_named(source: Path, name: str, value: object) -> None:
    edit_all(source, with_arguments(**{name: value}))
    shown = name.partition("\x1b")[0]
    refusal = expand_refused(source, 3, f"args.{shown}.*does not understand.*pass --ignore-arg")
    offered = shlex.split(refusal.err.splitlines()[-1].partition("pass ")[2])
    accepted("expand", source, source.parent / "out", *GROW, *offered)


def test_features_that_flmgrow_does_not_have_are_named(source: Path) -> None:
    edit_all(source, with_arguments(num_experts=8, softmax_type="learnable"))
    says = r"found 8; args.softmax_type: found 'learnable'; .* mixture of experts and a softmax"
    assert "--ignore-arg" not in expand_refused(source, 3, says).err


@pytest.mark.parametrize("version", [0, 1.0, 4, None, "3", True, float("nan")])
def test_older_orders_of_query_key_value_are_refused(source: Path, version: object) -> None:
    edit_all(source, lambda content: content.update(checkpoint_version=version))
    expand_refused(source, 3, "checkpoint_version .*, wanted 2 or 3")


def test_arguments_nested_too_deeply_are_refused(source: Path) -> None:
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    edit_all(source, with_arguments(normalization=deep))
    expand_refused(source, 3, r"args.normalization: found \[\[\[")


def test_hostile_names_come_out_escaped(source: Path) -> None:
    key = "\x1b[31mdecoder\x1b]0;title\x07\r\nerror: no"
    edit_all(source, lambda content: content["model"].update({key: torch.zeros(2)}))
    expand_refused(source, 3, r"\\x1b\[31mdecoder\\x1b\]0;title\\x07\\r\\nerror: no: no such")


# --- values


@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_found_and_placed(
    source: Path, value: float, method: str
) -> None:
    def spoil(weight: torch.Tensor) -> torch.Tensor:
        weight[2, 3] = value
        return weight

    edit(rank_files(source)[0], with_tensor(DOWN, spoil))
    options = ("--num-layers", 6, "--method", method)
    expand_refused(source, 3, r"down\[1, 2, 3\]: (nan|inf), .*--allow-nonfinite", *options)
    out = source.parent / "out"
    accepted("expand", source, out, *GROW, *options, "--allow-nonfinite")
    assert re.search(r"not finite +down\[1\]: [12]\n", flmgrow("inspect", out, "--health").out)


def test_values_too_large_for_a_dtype_are_found(source: Path) -> None:
    edit_all(source, with_tensor(DOWN, lambda weight: weight * 1e30))
    out = source.parent / "out"
    command = ("reshard", source, out, "--dtype", "float16")
    refused(3, r"down\[1, 0, 0\]: .*may not fit float16", *command, place=source.parent)


@pytest.mark.parametrize("name", ["gpt", "flm"])
def test_means_of_what_is_not_finite_raise_no_warnings(tmp_path: Path, name: str) -> None:
    source = make_checkpoint(tmp_path / "source", name, optimizer=False)
    edit_all(source, with_tensor(DOWN, lambda weight: weight / 0))
    options = ("--hidden-size", 20, "--method", "copy")
    expand_refused(source, 3, "down.*not finite", *options)


def test_optimizer_state_is_dropped_only_when_told(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "tele", optimizer=True)
    accepted("expand", source, tmp_path / "carried", *GROW)
    outcome = accepted("expand", source, tmp_path / "out", *GROW, "--no-optimizer")
    assert "note: left out: optimizer" in outcome.err
    found = [json.loads((tmp_path / n / "flmgrow.json").read_text()) for n in ("carried", "out")]
    assert [manifest["optimizer"] for manifest in found] == ["keep", "dropped"]
    assert found[1]["dropped"] == ["optimizer", "opt_param_scheduler"]


def test_a_distributed_optimizers_file_is_dropped_only_when_told(source: Path) -> None:
    for file in rank_files(source):
        (file.parent / "distrib_optim.pt").write_bytes(b"state")
    says = "mp_rank_00_000/model_optim_rng.pt: .*distributed optimizer.*--no-optimizer"
    expand_refused(source, 3, says)
    accepted("expand", source, source.parent / "out", *GROW, "--no-optimizer")


def test_a_source_that_changes_while_it_is_read_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flmgrow.surgery.execute import Executor

    write: Callable[..., None] = Executor._write

    def write_and_touch(self: Executor, *arguments: object) -> None:
        write(self, *arguments)
        file = rank_files(source)[0]
        file.write_bytes(file.read_bytes())

    monkeypatch.setattr(Executor, "_write", write_and_touch)
    outcome = flmgrow("expand", source, source.parent / "out", *GROW)
    assert outcome.code == 3
    assert "mp_rank_00_000/model_optim_rng.pt: changed while it was being read" in outcome.err
    assert [path.name for path in source.parent.iterdir()] == ["source"]
