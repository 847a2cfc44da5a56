"""What lies beside the weights of a Hugging Face folder: carried along, left out or refused."""

import json
from pathlib import Path

import numpy as np
from commands import accepted, refused
from growing import all_files
from hf_folders import fields, llama_arrays, make_folder, with_files

from flmgrow.formats.opening import open_checkpoint


def test_tokenizer_files_come_along_and_programs_do_not(tmp_path: Path) -> None:
    source = with_files(
        make_folder(tmp_path / "hf"),
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "generation_config.json", "modeling_evil.py", "README.md",
    )  # fmt: skip
    outcome = accepted("export", source, tmp_path / "out", "--dtype", "bfloat16")
    assert "note: left out: programs (*.py): modeling_evil.py" in outcome.err
    assert "note: left out: other files: README.md" in outcome.err
    files = set(all_files(tmp_path / "out"))
    assert files == {
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "generation_config.json", "config.json", "model.safetensors", "flmgrow.json",
        "README.md",
    }  # fmt: skip
    assert (tmp_path / "out" / "README.md").read_bytes() != b"README.md"
    assert (tmp_path / "out" / "merges.txt").read_bytes() == b"merges.txt"
    accepted("export", source, tmp_path / "code", "--keep-code")
    assert (tmp_path / "code" / "modeling_evil.py").exists()


def test_what_no_megatron_checkpoint_holds_is_named(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "modeling_x.py", "notes.txt")
    err = accepted("import", source, tmp_path / "out").err
    assert err == (
        "note: left out: programs (*.py): modeling_x.py\nnote: left out: other files: notes.txt\n"
    )


def test_names_of_files_cannot_drive_a_terminal(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "\x1b[2J.txt")
    err = accepted("import", source, tmp_path / "out").err
    assert "other files" in err
    assert "\x1b" not in err


def test_a_link_out_of_the_folder_is_not_copied(tmp_path: Path) -> None:
    """The cache of huggingface_hub consists of links; a link elsewhere may show a secret."""
    (tmp_path / "secret").write_text("secret")
    source = make_folder(tmp_path / "hf")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    refused(3, "tokenizer.json: is a symbolic link out", "export", source, tmp_path / "out",
            place=tmp_path)  # fmt: skip
    cache = tmp_path / "cache"
    for folder in ("snapshots", "blobs"):
        (cache / folder).mkdir(parents=True)
    snapshot = make_folder(cache / "snapshots" / "1a2b")
    (cache / "blobs" / "77").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/77")
    accepted("export", snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def test_unknown_harmless_fields_are_carried_and_private_ones_are_not(tmp_path: Path) -> None:
    rotary = {"rope_theta": 10000.0, "rope_type": "default"}
    own = fields(_name_or_path="/secret/place", bos_token_id=5, rope_parameters=rotary)
    source = make_folder(tmp_path / "hf", config=own)
    accepted("expand", source, tmp_path / "out", "--ffn-hidden-size", 20, "--method", "zero")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["bos_token_id"] == 5
    assert found["rope_parameters"] == rotary
    assert found["intermediate_size"] == 20
    assert (found["rope_theta"], found["rope_scaling"]) == (10000.0, None)
    assert "/secret" not in "".join(
        path.read_text(errors="replace") for path in (tmp_path / "out").iterdir()
    )


def test_buffers_are_left_out_and_named(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    arrays["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.uint8)
    source = make_folder(tmp_path / "hf", arrays=arrays)
    assert (
        "note: left out: 2 buffers that follow from config.json"
        in accepted("import", source, tmp_path / "out").err
    )


def test_a_stored_copy_of_the_shared_table_must_agree(tmp_path: Path) -> None:
    arrays = llama_arrays()
    tied = fields(tie_word_embeddings=True)
    source = make_folder(tmp_path / "bad", config=tied, arrays=arrays)
    refused(3, "lm_head.weight: not equal to .*embed_tokens", "import", source, tmp_path / "out",
            place=tmp_path)  # fmt: skip
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    good = make_folder(tmp_path / "good", config=tied, arrays=arrays)
    accepted("export", good, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as opened:
        assert "lm_head.weight" not in {array.placement.key for array in opened.reader.arrays}
