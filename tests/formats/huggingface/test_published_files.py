"""``config.json`` of published models, as other programs have them: nothing to be vouched for."""

import json
from dataclasses import replace
from math import log

import pytest
from published_models import FILES, fields_of, model_of

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, notes_on_fields, read_fields
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.model.config import LayerKind, Multipliers, RotarySettings
from flmgrow.model.rotary import Yarn
from flmgrow.model.tensors import parameter_count


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read_without_a_note(name: str) -> None:
    assert parameter_count(model_of(name)) == FILES[name]["parameters"]
    fields = fields_of(name)
    options = ReadOptions(ignored_fields=tuple(FILES[name].get("vouched", ())))
    assert notes_on_fields(family_of(fields, "x"), fields, options) == []


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_of_it_says_the_same(name: str) -> None:
    config = model_of(name)
    family, fields = written_fields(config, fields_of(name)["model_type"])
    assert read_fields(family, json.loads(json.dumps(fields)), "x") == config


def test_sources_are_named() -> None:
    assert {entry["kind"] for entry in FILES.values()} == {"verbatim", "printed", "quoted"}
    assert all(len(entry["source"].split()) > 1 for entry in FILES.values())


def test_a_model_of_pictures_is_refused() -> None:
    with pytest.raises(BadCheckpointError, match="model_type: found 'gemma3'") as refusal:
        family_of(FILES["google/gemma-3-12b-it"]["config"], "x")
    assert "give the folder of a text model alone" in str(refusal.value.hint)


_LLAMA3 = RotarySettings(base=5e5, scaling_factor=8.0, scaling_context=8192)
ROTARY: dict[str, RotarySettings] = {
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3,
    "meta-llama/Llama-3.2-1B-Instruct": replace(_LLAMA3, scaling_factor=32.0),
    "HuggingFaceTB/SmolLM2-135M-Instruct": RotarySettings(base=1e5),
    "mistralai/Mistral-7B-Instruct-v0.3": RotarySettings(base=1e6),
    "togethercomputer/RedPajama-INCITE-Chat-3B-v1": RotarySettings(),
    "EleutherAI/pythia-6.9b-deduped": RotarySettings(percent=0.25),
    "tiiuae/Falcon3-7B-Instruct": RotarySettings(base=1000042.0),
    "google/gemma-3-12b-it": RotarySettings(base=1e6, interpolation=8.0),
}


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_settings(name: str) -> None:
    assert model_of(name).rotary == ROTARY[name]


@pytest.mark.parametrize("name", ["Phi-3.5-mini", "Phi-4-mini"])
def test_longrope_by_its_older_spelling(name: str) -> None:
    """``type``, no factor: it is how much longer texts are than those of training."""
    fields = fields_of(f"microsoft/{name}-instruct")
    longrope = model_of(f"microsoft/{name}-instruct").rotary.longrope
    assert longrope is not None
    assert longrope.long == tuple(map(float, fields["rope_scaling"]["long_factor"]))
    assert longrope.short == tuple(map(float, fields["rope_scaling"]["short_factor"]))
    assert longrope.context == 4096
    assert longrope.attention == pytest.approx((1 + 5 / 12) ** 0.5, rel=1e-12)  # 32 = 2^5 times


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen1.5-1.8B-Chat"]
)
def test_a_window_that_is_switched_off_is_none(name: str) -> None:
    fields = fields_of(name)
    assert fields["sliding_window"]
    assert not fields["use_sliding_window"]
    config = model_of(name)
    assert all(config.kind(layer) == LayerKind() for layer in range(config.layers))


def test_windows_of_all_layers() -> None:
    for name in ("mistralai/Mistral-7B-v0.1", "dicta-il/dictalm2.0-instruct"):
        assert model_of(name).layer_kinds == (LayerKind(4096),) * 32


def test_a_field_that_only_its_maker_can_tell_of_stops_the_reading() -> None:
    fields = fields_of("dicta-il/dictalm2.0-instruct")
    with pytest.raises(BadCheckpointError, match="document_attention: found True") as refusal:
        read_fields(family_of(fields, "x"), fields, "x")
    assert "document_attention" in str(refusal.value.hint)


def test_an_epsilon_of_another_norm_may_be_null_only() -> None:
    fields = fields_of("ByteDance-Seed/Seed-Coder-8B-Base")
    assert fields["layer_norm_eps"] is None
    other = {**fields, "layer_norm_eps": 1e-5}
    with pytest.raises(BadCheckpointError, match="layer_norm_eps: found 1e-05"):
        read_fields(family_of(other, "x"), other, "x")


def test_granite_multiplies() -> None:
    wanted = Multipliers(embedding=12.0, output=1 / 16, attention=1 / 128, residual=0.22)
    assert model_of("ibm-granite/granite-3.3-8b-instruct").multipliers == wanted


def test_yarn_without_a_word_on_scores() -> None:
    """They grow by a tenth of the factor's logarithm."""
    yarn = model_of("arcee-ai/AFM-4.5B").rotary.yarn
    assert yarn is not None
    assert yarn.attention == pytest.approx(1 + 0.1 * log(20), rel=1e-12)
    assert replace(yarn, attention=1.0) == Yarn(20.0, 4096)


def test_a_window_longer_than_texts_is_none() -> None:
    assert not any(kind.window for kind in model_of("microsoft/Phi-3.5-mini-instruct").layer_kinds)


def test_gemma_says_types_of_layers_or_a_pattern() -> None:
    local = LayerKind(512, rotary=RotarySettings())
    for name, layers in (("google/gemma-3-1b-it", 26), ("google/gemma-3-270m", 18)):
        wanted = [LayerKind() if (one + 1) % 6 == 0 else local for one in range(layers)]
        assert list(model_of(name).layer_kinds) == wanted


def test_names_of_another_family_that_nobody_reads_change_nothing() -> None:
    """StarCoder 2 of 7B says gelu, and GPT-2's name of the epsilon, beside what is read."""
    name = "bigcode/starcoder2-7b"
    config = model_of(name)
    assert (config.activation, config.norm_eps) == ("gelu_tanh", 1e-5)
    fields = {**fields_of(name), "activation_function": "relu", "layer_norm_epsilon": 3.0}
    assert read_fields(family_of(fields, "x"), fields, "x") == config
    read = {**fields_of(name), "norm_epsilon": 3e-5}
    assert read_fields(family_of(read, "x"), read, "x") == replace(config, norm_eps=3e-5)


def test_a_head_that_no_field_sizes_has_the_size_of_its_family() -> None:
    assert "head_dim" not in fields_of("Qwen/Qwen3-8B")
    assert model_of("Qwen/Qwen3-8B").head_dim == 128


@pytest.mark.slow
def test_transformers_counts_as_many_parameters() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    unlike = {"model_type", "auto_map", "architectures", "_attn_implementation"}
    for name, entry in FILES.items():
        fields = {key: value for key, value in fields_of(name).items() if key not in unlike}
        with torch.device("meta"):
            config = AutoConfig.for_model(fields_of(name)["model_type"], **fields)
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        assert sum(one.numel() for one in model.parameters()) == entry["parameters"], name
