"""Tokenizers, settings of generation and special ids go wherever the weights go."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import accepted, flmgrow, refused
from growing import all_files
from hf_folders import MODELS, fields, make_folder, with_files
from pico import make_checkpoint
from transformers_models import make_model

from flmgrow.formats.companions import TOKEN_IDS, companions_in
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.tokenizer.settings import id_count, made_config, named_ids

IDS = {"bos_token_id": 3, "eos_token_id": [5, 7], "pad_token_id": 0}
FILES = ("tokenizer.json", "tokenizer_config.json", "merges.txt", "generation_config.json")


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def ids_in(folder: Path) -> dict[str, Any]:
    return {name: config_of(folder).get(name, "absent") for name in IDS}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = with_files(make_folder(tmp_path / "hf", fields(**IDS)), *FILES)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    return folder


@pytest.mark.parametrize("kind", ["megatron", "torch_dist"])
def test_they_travel_through_megatron_growth_and_reshard(
    kind: str, source: Path, tmp_path: Path
) -> None:
    accepted("import", source, tmp_path / "m", "--tp", 2, "--format", kind)
    accepted("expand", tmp_path / "m", tmp_path / "g", "--num-layers", 3, "--method", "zero")
    accepted("reshard", tmp_path / "g", tmp_path / "r", "--tp", 1)
    accepted("export", tmp_path / "r", tmp_path / "back")
    assert ids_in(tmp_path / "back") == IDS
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    beside = {
        name.rpartition("/")[2] for name in all_files(tmp_path / "m") if "/tokenizer/" in name
    }
    assert beside == {*FILES, TOKEN_IDS}


def test_their_sums_are_in_the_manifest(source: Path, tmp_path: Path) -> None:
    accepted("import", source, tmp_path / "m")
    assert flmgrow("verify", source, tmp_path / "m").code == 0
    file = tmp_path / "m" / "release" / "tokenizer" / "tokenizer.json"
    file.write_bytes(file.read_bytes()[::-1])
    outcome = flmgrow("verify", source, tmp_path / "m")
    assert outcome.code != 0
    assert "release/tokenizer/tokenizer.json" in outcome.out + outcome.err


def test_inspect_shows_them(source: Path, tmp_path: Path) -> None:
    accepted("import", source, tmp_path / "m")
    out = accepted("inspect", tmp_path / "m").out
    assert "tokenizer.json, tokenizer_config.json, bos_token_id 3, eos_token_id [5, 7]" in out


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}),
        ({"eos_token_id": None}, {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": None}),
        ({"vocab_size": 24, "model_type": "qwen2"}, dict.fromkeys(IDS)),
    ],
)
def test_ids_that_no_field_says_are_the_familys_usual_ones(
    given: dict[str, object], wanted: dict[str, object], tmp_path: Path
) -> None:
    """transformers takes them, too: an export says so itself."""
    model = "qwen2" if "model_type" in given else "llama"
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    assert {name: getattr(kinds[model](**given), name) for name in IDS} == wanted
    if model == "qwen2":
        return
    source = make_folder(tmp_path / "hf", fields(**given))
    accepted("import", source, tmp_path / "m")
    accepted("export", tmp_path / "m", tmp_path / "back")
    assert ids_in(tmp_path / "back") == wanted


def test_what_nobody_says_is_null_and_told(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m", MODELS["llama"])
    err = accepted("export", source, tmp_path / "hf").err
    assert "note: no tokenizer goes along: export --tokenizer FILE or FOLDER names one\n" in err
    assert "note: nothing says which id ends a text: eos_token_id is null" in err
    assert ids_in(tmp_path / "hf") == dict.fromkeys(IDS)
    assert "tokenizer" not in accepted("export", tmp_path / "hf", tmp_path / "again").err


def test_heads_that_older_transformers_cannot_read_are_told(tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "m", MODELS["qwen3"])
    err = accepted("export", wide, tmp_path / "hf").err
    assert "note: 4 heads of 8 are not as wide as the model (16): transformers before 4.48" in err


def test_generation_stops_where_the_source_stops(tmp_path: Path) -> None:
    """By the special ids alone, after import, growth, another layout and export."""
    model = make_model("llama", torch.float64)
    prompt = torch.tensor([[4, 9, 11]])
    longest = {"max_new_tokens": 12, "do_sample": False}
    free = model.generate(prompt, **longest)[0].tolist()
    end = free[7]  # the fifth new token, and no earlier one
    assert end not in free[:7]
    model.config.update({"eos_token_id": end, "bos_token_id": 4, "pad_token_id": 0})
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").unlink()
    stopped = model.generate(prompt, **longest)[0].tolist()
    assert stopped == free[:8]
    accepted("import", tmp_path / "hf", tmp_path / "m", "--tp", 2)
    grow = ("--hidden-size", 48, "--num-layers", 6, "--method", "zero")
    accepted("expand", tmp_path / "m", tmp_path / "g", *grow, "--tp", 1)
    accepted("export", tmp_path / "g", tmp_path / "out")
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").double()
    assert grown.generate(prompt, **longest)[0].tolist() == stopped


def test_a_link_out_of_the_folder_is_not_carried(source: Path, tmp_path: Path) -> None:
    accepted("import", source, tmp_path / "m")
    (tmp_path / "secret").write_text("secret")
    file = tmp_path / "m" / "release" / "tokenizer" / "merges.txt"
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    refused(3, "merges.txt: is a symbolic link out", "reshard", tmp_path / "m", tmp_path / "x",
            place=tmp_path)  # fmt: skip


def test_a_pointer_to_a_tokenizer_is_not_carried(source: Path, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    (source / "tokenizer.json").write_bytes(pointer)
    refused(3, "tokenizer.json: ", "import", source, tmp_path / "m", place=tmp_path)


@pytest.mark.parametrize("bad", ['"x"', "true", "[1, null, 2.5]"])
def test_ids_that_are_none(bad: str, source: Path, tmp_path: Path) -> None:
    accepted("import", source, tmp_path / "m")
    folder = tmp_path / "m" / "release"
    (folder / "tokenizer" / TOKEN_IDS).write_text(f'{{"eos_token_id": {bad}}}')
    refused(3, "eos_token_id: found .*wanted an id", "inspect", tmp_path / "m", place=tmp_path)
    with open_checkpoint(source) as opened:
        assert dict(opened.companions.ids) == IDS
    assert companions_in(tmp_path).text == ""


# --- What a tokenizer.json says

TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 0, "content": "<|endoftext|>"}, {"id": 9, "content": "<pad>"}],
    "model": {"type": "BPE", "vocab": {"a": 1, "b": 2}},
}


def test_special_tokens_are_found_by_what_names_them() -> None:
    assert id_count(TOKENIZER) == 10
    assert named_ids(TOKENIZER, {}) == {"eos_token_id": 0}
    named = {"eos_token": {"content": "<pad>"}, "bos_token": "a", "pad_token": None}
    assert named_ids(TOKENIZER, named) == {"eos_token_id": 9}
    made = json.loads(made_config(TOKENIZER, {"eos_token_id": [9, 1], "bos_token_id": 1}, 64))
    assert made["eos_token"] == "<pad>"
    assert "bos_token" not in made  # an ordinary token: it would become special in every text
    assert id_count({"model": {"vocab": [["a", 0.0], ["b", 1.0]]}}) == 2
    assert id_count({}) == 0
