"""FLM has no class in transformers: an export ships one, and here transformers loads and judges it.

Its logits are compared with those of flmgrow's reference forward on the Megatron checkpoint. The
shipped code computes in the dtype of the weights or, where these are narrow, in float32: nothing
has to be lifted for float64.
"""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import accepted, check_lines, flmgrow
from growing import all_files, checkpoint_logits, tokens_for
from pico import CONFIGS, even, make_checkpoint
from sampling import sample
from torch import Tensor
from transformers_models import model_logits

from flmgrow.formats.huggingface import shipped as huggingface_code
from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

EXACT, SINGLE = 1e-9, 1e-4
_PAPER = CONFIGS["flm"]
_ROPE = replace(_PAPER, positions="rope", rotary=RotarySettings(base=100.0))
MODELS: dict[str, ModelConfig] = {
    "paper": _PAPER,
    "paper untied": replace(_PAPER, tied=False),
    "rope": replace(_ROPE, activation="gelu_tanh", multipliers=Multipliers(attention=1.0)),
    "rope untied": replace(_ROPE, tied=False),
    "interleaved": replace(_PAPER, rotary=replace(_PAPER.rotary, interleaved=True)),
    "narrow heads": replace(_PAPER, head_dim=2, multipliers=Multipliers(output=3.0)),
}
TOKENS = tokens_for(_PAPER.vocab, length=16)
SHIPPED = [Path(huggingface_code.__path__[0]) / name for name in FAMILIES["flm"].code_files]


def export(config: ModelConfig, place: Path, dtype: str = "float64") -> Path:
    """A Megatron checkpoint in ``place``, on four ranks, and the folder exported from it."""
    make_checkpoint(place / "megatron", config, even(config, 2, 2), dtype=dtype)
    accepted("export", place / "megatron", place / "hf", "--family", "flm")
    return place / "hf"


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """Load a folder with the code in it."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=dtype, output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(model).__name__ == "FLMForCausalLM"
    return model.eval()


def reference(path: Path, dtype: torch.dtype) -> Tensor:
    with open_checkpoint(path) as opened:
        return logits(opened.config, CheckpointWeights(opened, dtype), TOKENS)


def refusal(code: int, *arguments: object) -> str:
    """What is said by a command that must be refused."""
    outcome = flmgrow(*arguments)
    assert outcome.code == code, outcome
    check_lines(outcome.err, "")
    return outcome.err


def worst(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


@pytest.fixture(scope="module", params=sample(MODELS, "paper", "rope untied"))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flm")
    export(MODELS[request.param], folder)
    return folder


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
def test_it_computes_what_the_reference_computes(
    place: Path, dtype: torch.dtype, allowed: float
) -> None:
    wanted = reference(place / "megatron", dtype)
    assert wanted.abs().max() > 0.5
    assert worst(model_logits(load(place / "hf", dtype), TOKENS), wanted) <= allowed


def test_the_head_is_tied_as_it_should_be(place: Path) -> None:
    model = load(place / "hf")
    told = json.loads((place / "hf" / "config.json").read_text())["tie_word_embeddings"]
    assert (model.lm_head.weight is model.transformer.wte.weight) == told


def test_single_precision_would_have_been_seen(place: Path) -> None:
    wanted = reference(place / "megatron", torch.float64)
    assert worst(model_logits(load(place / "hf", torch.float32), TOKENS), wanted) > EXACT


def test_the_cache_changes_nothing(place: Path) -> None:
    model = load(place / "hf")
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    cached = model.generate(TOKENS, use_cache=True, **options)
    assert cached.shape == (2, 28)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **options))
    with torch.no_grad():
        first = model(TOKENS[:, :9], use_cache=True)
        rest = model(TOKENS[:, 9:], past_key_values=first.past_key_values)
    wanted = reference(place / "megatron", torch.float64)
    assert worst(torch.cat((first.logits, rest.logits), 1), wanted) <= EXACT


def test_padding_on_the_left_changes_nothing(place: Path) -> None:
    model = load(place / "hf")
    padded = torch.nn.functional.pad(TOKENS, (5, 0))
    mask = (torch.arange(padded.shape[1]) >= 5).long().expand(2, -1)
    with torch.no_grad():
        found = model(padded, attention_mask=mask).logits[:, 5:]
        blind = model(padded).logits[:, 5:]
    wanted = reference(place / "megatron", torch.float64)
    assert worst(found, wanted) <= EXACT
    assert worst(blind, wanted) > EXACT
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **options)
    shifted = model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(shifted[:, 5:], plain)


def test_there_and_back_not_a_byte_changes(place: Path, tmp_path: Path) -> None:
    accepted("import", place / "hf", tmp_path / "megatron", "--tp", 2)
    accepted("export", tmp_path / "megatron", tmp_path / "hf", "--family", "flm")
    before, after = all_files(place / "hf"), all_files(tmp_path / "hf")
    assert len(before) == 6
    for name in before.keys() - {"flmgrow.json", "README.md"}:  # which name the folder
        assert before[name] == after[name], name
    assert flmgrow("verify", place / "hf", tmp_path / "megatron").code == 0


def test_what_transformers_saves_is_read_again(place: Path, tmp_path: Path) -> None:
    load(place / "hf").save_pretrained(tmp_path / "saved")
    assert worst(reference(tmp_path / "saved", torch.float64),
                 reference(place / "hf", torch.float64)) == 0  # fmt: skip


def test_the_bare_model_loads_and_is_read_again(tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path)
    bare = transformers.AutoModel.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float64
    )
    assert type(bare).__name__ == "FLMModel"
    with torch.no_grad():
        states = bare.eval()(TOKENS).last_hidden_state
        found = states @ bare.wte.weight.T * _PAPER.logit_factor
    assert worst(found, reference(folder, torch.float64)) <= EXACT
    bare.save_pretrained(tmp_path / "bare")
    assert worst(reference(tmp_path / "bare", torch.float64), found) <= EXACT


HEADS = ("--hidden-size", 24, "--num-attention-heads", 8, "--num-layers", 6)
GROWTHS = [
    ("paper", (*HEADS, "--ffn-hidden-size", 40, "--method", "copy")),
    ("paper", ("--num-layers", 6, "--num-attention-heads", 6, "--method", "zero")),
    ("paper untied", ("--hidden-size", 20, "--ffn-hidden-size", 30, "--method", "zero")),
    ("rope untied", (*HEADS, "--method", "zero")),
]


@pytest.mark.parametrize(("name", "growth"), GROWTHS)
def test_a_grown_flm_computes_the_same(
    name: str, growth: tuple[object, ...], tmp_path: Path
) -> None:
    small = export(MODELS[name], tmp_path)
    wanted = model_logits(load(small), TOKENS)
    accepted("expand", tmp_path / "megatron", tmp_path / "grown", *growth)
    accepted("export", tmp_path / "grown", tmp_path / "out", "--family", "flm")
    accepted("expand", small, tmp_path / "direct", *growth)
    for folder in ("out", "direct"):
        assert worst(model_logits(load(tmp_path / folder), TOKENS), wanted) <= EXACT
        assert worst(checkpoint_logits(tmp_path / folder, TOKENS), wanted) <= EXACT
    configs = [all_files(tmp_path / folder)["config.json"] for folder in ("out", "direct")]
    assert configs[0] == configs[1]


def test_bfloat16_is_rounded_no_further_than_its_weights(tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path, "bfloat16")
    found = model_logits(load(folder, torch.bfloat16), TOKENS)
    wanted = reference(tmp_path / "megatron", torch.float64)
    assert found.dtype == torch.bfloat16
    assert worst(found, wanted) < 0.05 * float(wanted.abs().max())


# --- What would go unseen if these tests were blind


@pytest.mark.parametrize(
    "changed",
    [
        {"rotary_xpos_scale_base": 16.1},
        {"rotary_use_xpos": False},
        {"rotary_theta": 10001.0},
        {"rotary_interleaved": True},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": False},
        {"input_mult": 2.501},
        {"output_mult": 1.701},
        {"mup_base_width": 12, "mup_scale_factor": 1.0},
        {"use_mup": False},
        {"layer_norm_epsilon": 1.01e-2},
        {"activation_function": "gelu_new"},
    ],
    ids=str,
)
def test_another_constant_is_seen_by_both(changed: dict[str, object], tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path)
    before = reference(folder, torch.float64)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    after = reference(folder, torch.float64)
    assert worst(after, before) > EXACT
    assert worst(model_logits(load(folder), TOKENS), after) <= EXACT


def test_the_centre_of_xpos_moves_nothing_but_rounding(tmp_path: Path) -> None:
    """Scores depend on distances only; a centre that was not the same for all would be seen."""
    folder = export(_PAPER, tmp_path)
    model = load(folder)
    wanted = model_logits(model, TOKENS)
    model.config.rotary_xpos_centre = 9
    assert 0 < worst(model_logits(model, TOKENS), wanted) <= EXACT
    with torch.no_grad():
        first = model(TOKENS[:, :9], use_cache=True)
        model.config.rotary_xpos_centre = 4
        rest = model(TOKENS[:, 9:], past_key_values=first.past_key_values)
    assert worst(rest.logits, wanted[:, 9:]) > EXACT


# --- The code, and whose it is


def test_it_stands_alone() -> None:
    assert len(SHIPPED) == 2
    for path in SHIPPED:
        text = path.read_text(encoding="utf-8")
        assert "Apache License, Version 2.0" in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["torch"]
            elif isinstance(node, ast.ImportFrom):
                own = node.level == 1 and node.module == "configuration_flm"
                assert own or str(node.module).partition(".")[0] in ("torch", "transformers")


def test_defaults_are_the_same_in_the_code_and_in_reading(tmp_path: Path) -> None:
    """Of every field that may be left out; without its base width, muP's factor is refused."""
    folder = export(replace(_PAPER, hidden=16, ffn=64), tmp_path)
    path = folder / "config.json"
    told = json.loads(path.read_text())
    sizes = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
    for name in sorted(FAMILIES["flm"].understood.difference(sizes, ["mup_base_width"])):
        path.write_text(json.dumps({key: value for key, value in told.items() if key != name}))
        found = model_logits(load(folder), TOKENS)
        assert worst(found, reference(folder, torch.float64)) <= EXACT, name
    for name in sizes:
        path.write_text(json.dumps({key: value for key, value in told.items() if key != name}))
        assert f"{name}: found 'nothing'" in refusal(3, "inspect", folder)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path)
    for path in SHIPPED:
        (folder / path.name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    note = accepted("import", folder, tmp_path / "back").err
    assert "left out: programs (*.py): configuration_flm.py, modeling_flm.py" in note
    accepted("expand", folder, tmp_path / "grown", "--ffn-hidden-size", 24, "--method", "zero")
    assert not (tmp_path / "ran").exists()
    for path in SHIPPED:  # what is written is flmgrow's own, not what lay there
        assert (tmp_path / "grown" / path.name).read_bytes() == path.read_bytes()
    accepted("export", folder, tmp_path / "kept", "--keep-code")
    assert (tmp_path / "kept" / path.name).read_bytes() == (folder / path.name).read_bytes()


def test_other_classes_must_be_vouched_for(tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path)
    path = folder / "config.json"
    other = {"AutoModelForCausalLM": "modeling_other.Other"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": other}))
    assert "auto_map: found {'AutoModelForCausalLM'" in refusal(3, "inspect", folder)
    accepted("export", folder, tmp_path / "out", "--ignore-field", "auto_map")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["auto_map"] == FAMILIES["flm"].fixed["auto_map"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm": "rmsnorm"}, "flm cannot say norm rmsnorm"),
        ({"activation": "swiglu"}, "flm cannot say activation swiglu"),
        ({"queries_per_group": 2}, "flm cannot say kv_groups 4, queries_per_group 2"),
        ({"rotary": RotarySettings(percent=0.5)}, "flm cannot say rotary.percent 0.5"),
        ({"rotary": RotarySettings(interpolation=2.0)}, "flm cannot say rotary.interpolation 2.0"),
        ({"multipliers": Multipliers(attention=0.3)}, "flm cannot say multipliers.attention 0.3"),
        ({"positions": "learned"}, "flm cannot say positions learned"),
        ({"linear_bias": False}, "flm cannot say linear_bias False"),
        ({"zero_centred_gain": True}, "flm cannot say zero_centred_gain True"),
    ],
)
def test_what_flm_cannot_say_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", replace(_PAPER, **changes))
    assert says in refusal(2, "export", tmp_path / "a", tmp_path / "b", "--family", "flm")


def test_a_factor_that_is_no_ratio_of_widths_is_refused(tmp_path: Path) -> None:
    folder = export(_PAPER, tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mup_scale_factor": 2.0}))
    assert "mup_scale_factor: found 2, wanted n_embd / mup_base_width (1.5)" in refusal(
        3, "inspect", folder
    )
