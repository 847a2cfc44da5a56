"""A trained model's tokenizer and end of texts are in its checkpoints, and in what is exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from commands import accepted
from hf_folders import make_folder
from stage_runs import make_data, stage_data, train, write_stage
from tiny_tokenizers import make_jsonl, make_tokenizer_json

from flmgrow.cli.app import run
from flmgrow.formats.companions import Companions
from flmgrow.formats.history.training_state import TokenizerFacts
from flmgrow.formats.opening import open_checkpoint
from flmgrow.trainer.checkpoint.companions import companions_of_run
from flmgrow.trainer.data.tokenizers import open_tokenizer

MODEL = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "positions": "rope"}
TEXT = "the thing that grows"


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage of a step on a tokenizer.json."""
    place = tmp_path_factory.mktemp("run")
    make_tokenizer_json(place / "tokenizer.json", "<|endoftext|>")
    texts = make_jsonl(place / "en.jsonl", [f"{TEXT} " * 9] * 20)
    words = ["data", "prepare", str(texts), str(place / "en")]
    assert run([*words, "--tokenizer", str(place / "tokenizer.json")]) == 0
    data = {"tokenizer": "../tokenizer.json", "sequence_length": 16, "corpora": [{"path": "../en"}]}
    content = stage_data(place, training={"steps": 1, "batch": 2, "micro_batch": 2})
    train(write_stage(place / "stage", {**content, "model": MODEL, "data": data}))
    return place


def check_tokenizer(folder: Path, wanted: Any) -> None:
    """transformers loads it, gives the trainer's ids, and adds none behind the vocabulary."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= config_of(folder)["vocab_size"]
    assert tokenizer.encode(TEXT, add_special_tokens=False) == wanted.encode(TEXT).tolist()
    assert tokenizer.eos_token_id == wanted.eod == config_of(folder)["eos_token_id"]


def test_an_export_of_a_trained_model_has_its_tokenizer(place: Path, tmp_path: Path) -> None:
    wanted = open_tokenizer(str(place / "tokenizer.json"))
    source = place / "stage" / "checkpoints"
    accepted("expand", source, tmp_path / "grown", "--num-layers", 2, "--method", "zero")
    for name, path in (("a", source), ("b", tmp_path / "grown")):
        err = accepted("export", path, tmp_path / name).err
        assert "tokenizer" not in err
        check_tokenizer(tmp_path / name, wanted)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_tokenizer_is_given_as_training_takes_it(
    as_folder: bool, place: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "tokenizer.json").write_bytes((place / "tokenizer.json").read_bytes())
    file = given if as_folder else given / "tokenizer.json"
    accepted("export", place / "stage" / "checkpoints", tmp_path / "hf", "--tokenizer", file)
    check_tokenizer(tmp_path / "hf", open_tokenizer(str(place / "tokenizer.json")))


def test_another_tokenizer_than_it_was_trained_with_is_told(place: Path, tmp_path: Path) -> None:
    content = json.loads((place / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 900, "content": "<x>"})
    (tmp_path / "other.json").write_text(json.dumps(content))
    source = place / "stage" / "checkpoints"
    err = accepted("export", source, tmp_path / "hf", "--tokenizer", tmp_path / "other.json").err
    assert "note: the tokenizer has 901 ids, the model has rows for 259: " in err
    assert "note: tokenizer.json is another than the model was trained with" in err


def test_bytes_need_no_file(tmp_path: Path) -> None:
    make_data(tmp_path)
    content = stage_data(tmp_path, training={"steps": 1, "batch": 2, "micro_batch": 2})
    train(write_stage(tmp_path / "stage", {**content, "model": MODEL}))
    for name, more in (("a", ()), ("b", ("--tokenizer", "bytes"))):
        accepted("export", tmp_path / "stage" / "checkpoints", tmp_path / name, *more)
        check_tokenizer(tmp_path / name, open_tokenizer("bytes"))


# --- What goes on from the checkpoint that a run begins with


def facts_of(path: Path) -> TokenizerFacts:
    return TokenizerFacts.model_validate(open_tokenizer(str(path)).identity)


def begun(place: Path, tmp_path: Path, end: int) -> Companions:
    """What a run holds whose source has the same tokenizer, a template, and ended texts there."""
    config = {"bos_token_id": 1, "eos_token_id": [end, 7]}
    folder = make_folder(tmp_path / "hf", {**json.loads(CONFIG), **config})
    (folder / "tokenizer.json").write_bytes((place / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").write_text("{{ x }}")
    with open_checkpoint(folder) as opened:
        facts = facts_of(place / "tokenizer.json")
        return companions_of_run(opened, str(place / "tokenizer.json"), facts)


CONFIG = json.dumps(
    {
        "model_type": "llama", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    }
)  # fmt: skip


def test_what_belongs_to_the_same_tokenizer_goes_on(place: Path, tmp_path: Path) -> None:
    held = begun(place, tmp_path, end=0)
    assert held.files.keys() == {"tokenizer.json", "chat_template.jinja"}
    assert all(isinstance(data, bytes) for data in held.files.values())
    assert dict(held.ids) == {"bos_token_id": 1, "eos_token_id": [0, 7]}


def test_another_end_of_documents_takes_the_place_of_the_old_one(
    place: Path, tmp_path: Path
) -> None:
    assert dict(begun(place, tmp_path, end=5).ids) == {"bos_token_id": 1, "eos_token_id": 0}


def test_the_files_of_another_tokenizer_stay_behind(place: Path, tmp_path: Path) -> None:
    other = make_tokenizer_json(tmp_path / "other.json", "</s>")
    folder = make_folder(tmp_path / "hf", {**json.loads(CONFIG), "bos_token_id": 1})
    (folder / "tokenizer.json").write_bytes((place / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").write_text("{{ x }}")
    with open_checkpoint(folder) as opened:
        held = companions_of_run(opened, str(other), facts_of(other))
    assert dict(held.files) == {"tokenizer.json": other.read_bytes()}
    assert dict(held.ids) == {"eos_token_id": 0}
