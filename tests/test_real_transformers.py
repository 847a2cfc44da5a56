"""The claim is about transformers, so transformers judges: it saves, flmgrow converts, it loads.

transformers' logits are compared with those of flmgrow's reference forward on the imported
checkpoint, and with transformers' own after an export or a growth. Where weights are float64,
everything is computed in float64 and must agree to 1e-9; in float32, to 1e-4.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import checkpoint_logits, tokens_for
from megatron_runs import torchrun_batch
from safetensors.torch import load_file, save_file
from sampling import sample
from torch import Tensor
from transformers_growths import GROWTHS, UNITS
from transformers_models import (
    CONFIGS,
    MEGATRON_LACKS,
    VOCAB,
    exact_logits,
    load_model,
    make_model,
    model_logits,
    save_model,
)

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

EXACT, SINGLE = 1e-9, 1e-4
TOKENS = tokens_for(VOCAB, length=24)
LAYOUT = ("--tp", 2, "--pp", 2)
ONE_GROUP = {"gpt_bigcode": ("--tp", 1, "--pp", 2)}
"""Layouts of models whose heads all have one key: tensor ranks cannot share it."""

MIXED = (
    "gemma2", "gemma2 uncapped", "gemma3", "gemma3 interpolated", "qwen2 in windows",
    "qwen3 in windows", "smollm3 in windows",
)  # fmt: skip
"""Some of whose layers have a window."""

CASES = [(name, growth) for name, growths in GROWTHS.items() for growth in growths]

OFTEN = (
    "llama", "llama tied with biases", "qwen3 with yarn", "mistral in windows", "smollm3",
    "olmo2 tied with biases", "gemma2", "granite", "gpt2", "gpt_neox in parallel", "nemotron",
    "phi3 tied", "gpt_bigcode",
)  # fmt: skip
"""One of each kind that has parts of its own: the default run tries these."""


def shard_size(name: str) -> str:
    """Half of the models are saved in several shards."""
    return "20KB" if len(name) % 2 else "5GB"


def reference(path: Path, dtype: torch.dtype) -> Tensor:
    """Return the logits that flmgrow's forward computes from a checkpoint."""
    with open_checkpoint(path) as opened:
        return logits(opened.config, CheckpointWeights(opened, dtype), TOKENS)


def worst(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.fixture(scope="module", params=sample(CONFIGS, *OFTEN))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def imported(name: str, source: Path, out: Path, *options: object) -> Path:
    """Import a model; one that megatron-core has no block for is copied, once that is refused."""
    if name in MEGATRON_LACKS:
        says = f"megatron-core cannot express {MEGATRON_LACKS[name]}"
        refused(2, says, "import", source, out, *options, place=source.parent)
        return accepted_at(out, "export", source, out)
    return accepted_at(out, "import", source, out, *ONE_GROUP.get(name, LAYOUT), *options)


def accepted_at(out: Path, *command: object) -> Path:
    accepted(*command)
    return out


@pytest.fixture(scope="module")
def exact(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float64 weights, and what is imported from it."""
    place = tmp_path_factory.mktemp("exact")
    save_model(name, place / "hf", torch.float64, shard_size(name))
    imported(name, place / "hf", place / "other")
    return place


def test_an_imported_model_computes_what_transformers_computes(exact: Path) -> None:
    wanted = exact_logits(exact / "hf", TOKENS)
    assert wanted.abs().max() > 1
    for folder in ("hf", "other"):
        assert worst(reference(exact / folder, torch.float64), wanted) <= EXACT


def test_single_precision_would_have_been_seen(exact: Path, name: str) -> None:
    model, _ = load_model(exact / "hf", torch.float64)
    if "gpt2" in name:  # nothing in it is rounded on the way
        model = model.float()
    assert worst(reference(exact / "hf", torch.float64), model_logits(model, TOKENS)) > EXACT


def test_verify_agrees(exact: Path) -> None:
    assert flmgrow("verify", exact / "hf", exact / "other").code == 0


def test_an_export_gives_back_the_same_tensors(exact: Path, name: str) -> None:
    family = json.loads((exact / "hf" / "config.json").read_text())["model_type"]
    back = exact / "back"
    options = ("--shard-size", "40K", "--family", family)
    accepted("export", exact / "other", back, *options)
    before, after = all_tensors(exact / "hf"), all_tensors(back)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert torch.equal(tensor, after[key]), key
    assert (back / "model.safetensors.index.json").exists()
    assert worst(exact_logits(back, TOKENS), exact_logits(exact / "hf", TOKENS)) == 0


def test_float32_agrees_as_well_as_it_can(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / "hf", torch.float32, shard_size(name))
    other = imported(name, tmp_path / "hf", tmp_path / "other", "--format", "torch_dist")
    assert worst(reference(other, torch.float32), model_logits(model, TOKENS)) <= SINGLE


MASKED = [name for name in GROWTHS if name not in MEGATRON_LACKS]
"""Masks are held by Megatron's formats alone."""


@pytest.mark.parametrize("name", sample(MASKED, *(name for name in OFTEN if name in MASKED)))
def test_a_masked_model_computes_the_same(name: str, tmp_path: Path) -> None:
    """Fresh units drawn behind closed masks, in every dimension."""
    save_model(name, tmp_path / "small", torch.float64)
    growth = [each for each in GROWTHS[name][-1] if each not in ("--method", "copy", "zero")]
    out = tmp_path / "large"
    accepted("expand", tmp_path / "small", out, *growth, "--format", "megatron")
    assert worst(
        checkpoint_logits(out, TOKENS)[..., :VOCAB], exact_logits(tmp_path / "small", TOKENS)
    ) <= EXACT  # fmt: skip


@pytest.mark.parametrize(
    ("name", "growth"), sample(CASES, *((name, GROWTHS[name][0]) for name in OFTEN))
)
def test_a_grown_model_computes_the_same(
    name: str, growth: tuple[object, ...], tmp_path: Path
) -> None:
    save_model(name, tmp_path / "small", torch.float64, shard_size(name))
    told = accepted("expand", tmp_path / "small", tmp_path / "large", *growth).err
    assert ("layer_types says" in told) == (name in MIXED and "--num-layers" in growth)
    small, large = (exact_logits(tmp_path / folder, TOKENS) for folder in ("small", "large"))
    assert large.shape[-1] >= VOCAB
    assert worst(large[..., :VOCAB], small) <= EXACT
    assert flmgrow("verify", tmp_path / "small", tmp_path / "large").code == 0


NOT_GROWN = {
    "heads of one norm": (
        "olmo2", ("--num-attention-heads", 8, "--method", "zero"),
        "heads=zero with one norm over the queries, and keys, of all heads.*hint: use --method",
    ),
    "masked heads of one norm": (
        "olmo2", ("--num-attention-heads", 8, "--method", "mask", "--bake"),
        "a head mask at 0.* cannot be baked: its norms weigh heads.*--method heads=copy",
    ),
    "a masked width": (
        "gemma2", ("--hidden-size", 48, "--method", "mask"),
        "the format huggingface cannot hold masks .width at 0",
    ),
    "a width that heads do not divide": (
        "gemma2", ("--hidden-size", 50, "--method", "zero"),
        "gemma2 cannot say hidden_size: found 50, wanted a multiple of num_attention_heads 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_GROWN)
def test_what_does_not_grow_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    name, growth, says = NOT_GROWN[case]
    save_model(name, tmp_path / "small", torch.float64)
    refused(2, says, "expand", tmp_path / "small", tmp_path / "x", *growth, place=tmp_path)


def test_masks_of_units_and_layers_are_baked(tmp_path: Path) -> None:
    """At 0, and so behind the norm after a branch."""
    save_model("gemma2", tmp_path / "small", torch.float64)
    growth = (*UNITS, "--ffn-hidden-size", 80, "--num-attention-heads", 8, "--method", "mask")
    accepted("expand", tmp_path / "small", tmp_path / "large", *growth, "--bake")
    small, large = (exact_logits(tmp_path / folder, TOKENS) for folder in ("small", "large"))
    assert worst(large, small) <= EXACT
    assert flmgrow("verify", tmp_path / "small", tmp_path / "large").code == 0


@pytest.mark.parametrize("name", ["olmo2", "gemma", "gemma2", "gemma3"])
def test_tensors_of_16_bits_stay_bit_for_bit(name: str, tmp_path: Path) -> None:
    save_model(name, tmp_path / "hf", torch.bfloat16)
    accepted("export", tmp_path / "hf", tmp_path / "back")
    before, after = all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_grown_model_in_float32(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / "small", torch.float32)
    accepted("expand", tmp_path / "small", tmp_path / "large", *GROWTHS[name][1])
    large, info = load_model(tmp_path / "large", torch.float32)
    assert not any(info.values())
    assert worst(model_logits(large, TOKENS), model_logits(model, TOKENS)) <= SINGLE


def test_bfloat16_tensors_stay_bit_for_bit(tmp_path: Path) -> None:
    save_model("qwen2", tmp_path / "hf", torch.bfloat16)
    accepted("import", tmp_path / "hf", tmp_path / "megatron", *LAYOUT)
    accepted("export", tmp_path / "megatron", tmp_path / "back")
    before, after = all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_weights_can_be_cast_on_the_way(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "hf", torch.float32)
    accepted("export", tmp_path / "hf", tmp_path / "half", "--dtype", "bfloat16")
    after = all_tensors(tmp_path / "half")
    for key, tensor in all_tensors(tmp_path / "hf").items():
        assert torch.equal(tensor.bfloat16(), after[key])
    _, info = load_model(tmp_path / "half", torch.bfloat16)
    assert not any(info.values())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_bare_model_is_read_as_well(name: str, tmp_path: Path) -> None:
    """Saved without its head, keys lack their prefix; a tied model loses nothing by that."""
    model = make_model("gpt2" if name == "gpt2" else "llama tied with biases", torch.float64)
    model.base_model.save_pretrained(tmp_path / "bare")
    model.save_pretrained(tmp_path / "whole")
    assert all(not key.startswith(("transformer.", "model.")) for key in
               all_tensors(tmp_path / "bare"))  # fmt: skip
    found = reference(tmp_path / "bare", torch.float64)
    assert worst(found, exact_logits(tmp_path / "whole", TOKENS)) <= EXACT
    accepted("export", tmp_path / "bare", tmp_path / "out")
    assert worst(exact_logits(tmp_path / "out", TOKENS), found) <= EXACT


# --- From transformers to megatron-core, with nothing of flmgrow's own in between

MEGATRON = (
    "llama", "llama 3", "llama tied with biases", "qwen2", "qwen3", "gpt2", "gpt_neox", "arcee",
    "nemotron", "nemotron with biases", "stablelm", "phi3 tied",
    "gpt_bigcode of heads", "seed_oss", "mistral in windows", "smollm3", "qwen3 in windows",
    "smollm3 in windows",
)  # fmt: skip


@pytest.mark.slow
def test_megatron_computes_what_transformers_computes(tmp_path: Path) -> None:
    """Loaded strictly, on 2 x 2 ranks, in float32."""
    torch.save(TOKENS, tmp_path / "tokens.pt")
    wanted, commands = {}, []
    for name in MEGATRON:
        place = tmp_path / name.replace(" ", "-")
        wanted[place] = model_logits(save_model(name, place / "hf", torch.float32), TOKENS)
        accepted("import", place / "hf", place / "m", *LAYOUT, "--transformer-impl", "local")
        tokens = ["--tokens", str(tmp_path / "tokens.pt")]
        commands.append(["logits", str(place / "m"), str(place / "logits.pt"), *tokens])
    torchrun_batch(4, commands)
    for place, expected in wanted.items():
        found = torch.load(place / "logits.pt", weights_only=True)["logits"]
        assert worst(found, expected) <= SINGLE, place.name


# --- What would go unseen if these tests were blind


def spoil_config(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def spoil_tensor(folder: Path, key: str) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[key].view(-1)[3] += 1e-6
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("llama", {"rms_norm_eps": 1.01e-3}),
        ("llama", {"rope_theta": 10001.0, "rope_parameters": None}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.25}),
        ("llama", "model.layers.2.self_attn.k_proj.weight"),
        ("gpt2", "transformer.h.3.attn.c_attn.weight"),
    ],
)
def test_a_small_difference_is_seen(name: str, spoil: Any, tmp_path: Path) -> None:
    save_model(name, tmp_path / "hf", torch.float64)
    before = reference(tmp_path / "hf", torch.float64)
    if isinstance(spoil, str):
        spoil_tensor(tmp_path / "hf", spoil)
    else:
        spoil_config(tmp_path / "hf", **spoil)
    assert worst(reference(tmp_path / "hf", torch.float64), before) > EXACT
    assert worst(exact_logits(tmp_path / "hf", TOKENS), before) > EXACT


def test_verify_sees_a_changed_tensor(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "hf", torch.float64)
    accepted("expand", tmp_path / "hf", tmp_path / "large", *GROWTHS["llama"][0])
    spoil_tensor(tmp_path / "large", "model.layers.0.mlp.up_proj.weight")
    assert flmgrow("verify", tmp_path / "hf", tmp_path / "large").code == 1
