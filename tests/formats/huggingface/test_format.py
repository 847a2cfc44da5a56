"""Hugging Face folders as one more format of every command that writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import grow_checkpoint, stored_arrays
from hf_folders import EVERY, MODELS, fields, llama_arrays, make_folder, with_files
from pico import make_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.formats.huggingface.matching import family_placements
from flmgrow.formats.opening import open_checkpoint
from flmgrow.surgery.layout_request import LayoutRequest


def test_formats_of_the_result(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    kinds = {"import": "megatron", "export": "huggingface", "reshard": "huggingface"}
    for command, kind in kinds.items():
        accepted(command, source, tmp_path / command)
        with open_checkpoint(tmp_path / command) as opened:
            assert (opened.format, opened.iteration) == (kind, None)
    accepted("reshard", source, tmp_path / "dist", "--format", "torch_dist", "--tp", 2)
    with open_checkpoint(tmp_path / "dist") as opened:
        assert (opened.format, opened.layout.tp) == ("torch_dist", 2)


@pytest.mark.parametrize("impl", ["transformer_engine", "local"])
def test_whose_names_an_import_has(impl: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    accepted("import", source, tmp_path / "out", "--transformer-impl", impl)
    with open_checkpoint(tmp_path / "out") as opened:
        assert opened.fused is (impl == "transformer_engine")
    (file,) = (tmp_path / "out").rglob("*.pt")
    content = torch.load(file, weights_only=False)
    assert content["args"].transformer_impl == impl
    assert content["args"].tokenizer_type == "HuggingFaceTokenizer"
    states = [key for key in content["model"] if key.endswith("_extra_state")]
    assert len(states) == 4 * 2 + 1
    assert file.parts[-3] == "release"


@pytest.mark.parametrize(
    ("name", "megatron"),
    [
        ("llama", True),
        ("olmo2", False),
        ("gemma", False),
        ("gemma2", False),
        ("gemma3_text", False),
    ],
)
def test_megatron_is_a_way_out_only_where_it_has_such_a_block(
    name: str, megatron: bool, tmp_path: Path
) -> None:
    family, said = written_fields(EVERY[name], name)
    placements = family_placements(family, EVERY[name], EVERY[name].sizes)
    arrays = {each.key: np.zeros(each.shape, np.float32) for each in placements}
    source = make_folder(tmp_path / "hf", said | {"dtype": "float32"}, arrays)
    words = ("export", source, tmp_path / "b", "--family", "gpt2")
    told = refused(2, "this model cannot be said", *words, place=tmp_path).err
    assert told.rstrip().endswith("grow it to sizes that a family can say")
    assert ("keep it as a Megatron checkpoint (--format megatron), or" in told) is megatron
    kept = flmgrow("reshard", source, tmp_path / "b", "--format", "megatron")
    assert (kept.code == 0) is megatron, kept.err


def test_optimizer_state_is_left_out_with_a_note(tmp_path: Path) -> None:
    config = MODELS["llama"]
    source = make_checkpoint(tmp_path / "a", config, dtype="bfloat16", optimizer=True)
    outcome = accepted("export", source, tmp_path / "b")
    assert "note: left out: optimizer\n" in outcome.err
    manifest = json.loads((tmp_path / "b" / "flmgrow.json").read_text())
    assert manifest["optimizer"] == "dropped"
    assert manifest["iteration"] is None
    assert manifest["source"]["iteration"] == 30
    assert flmgrow("verify", source, tmp_path / "b").code == 0


def test_padding_is_left_out_with_a_note(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", MODELS["llama"], multiple=32)
    assert "8 of 32 vocab rows (padding)" in accepted("export", source, tmp_path / "b").err


def test_rows_of_a_vocabulary_that_are_none(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    words = ("--true-vocab-size", 20)
    outcome = accepted("export", source, tmp_path / "out", *words)
    assert "4 of 24 vocab rows (padding)" in outcome.err
    with open_checkpoint(tmp_path / "out") as opened:
        assert (opened.config.vocab, opened.padded_vocab) == (20, 20)
    refused(2, "only 24 rows are stored", "export", source, tmp_path / "x", "--true-vocab-size", 25,
            place=tmp_path)  # fmt: skip


def test_masks_are_refused_with_the_ways_out(tmp_path: Path) -> None:
    place = tmp_path
    source = make_checkpoint(place / "a", MODELS["llama"])
    grow = ("--ffn-hidden-size", 40)
    refused(2, "cannot hold masks .ffn at 0.*finish the ramp.*--method zero or copy", "expand",
            source, place / "x", *grow, "--format", "huggingface", place=place)  # fmt: skip
    accepted("expand", source, place / "masked", *grow)
    refused(2, "format huggingface cannot hold masks .ffn at 0.*flmgrow bake", "export",
            place / "masked", place / "x", place=place)  # fmt: skip
    accepted("bake", place / "masked", place / "baked", "--value", 0)
    accepted("export", place / "baked", place / "out")
    accepted("expand", source, place / "at-once", *grow, "--bake", "--format", "huggingface")
    for result in ("out", "at-once"):
        with open_checkpoint(place / result) as opened:
            assert opened.config.ffn == 40


@pytest.mark.parametrize(
    ("code", "says", "words"),
    [
        (2, "No such option.*--tp", "export HF OUT --tp 2"),
        (2, "--tp 2: a Hugging Face folder has no ranks", "reshard HF OUT --tp 2"),
        (2, "--iteration 3: a Hugging Face folder has no iter", "reshard HF OUT --iteration 3"),
        (2, "is a Megatron checkpoint, wanted a Hugging Face", "import MEGATRON OUT"),
        (2, "--family bert: unknown", "export MEGATRON OUT --family bert"),
        (2, "gpt2 cannot say .*norm rmsnorm", "export MEGATRON OUT --family gpt2"),
        (2, "--shard-size 0: wanted at least one byte", "export HF OUT --shard-size 0"),
        (2, "--shard-size big: not a size", "export HF OUT --shard-size big"),
        (2, "--transformer-impl x: unknown", "import HF OUT --transformer-impl x"),
        (2, "--format bin: wanted megatron or torch_dist or fsdp", "import HF OUT --format bin"),
        (2, "--format huggingface: import writes", "import HF OUT --format huggingface"),
        (2, "llama cannot say hidden_size: found 9", "expand HF OUT --hidden-size 9 --method copy"),
        (2, "TP4 cannot split kv_group 2", "import HF OUT --tp 4"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(code: int, says: str, words: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "hf")
    make_checkpoint(tmp_path / "megatron", MODELS["llama"])
    places = {"HF": "hf", "MEGATRON": "megatron", "OUT": "out"}
    arguments = [str(tmp_path / places[w]) if w in places else w for w in words.split()]
    refused(code, says, *arguments, place=tmp_path)


def test_shards_are_filled_in_order(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    accepted("export", source, tmp_path / "out", "--shard-size", 1000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = list(dict.fromkeys(index["weight_map"].values()))
    assert names == sorted(names)
    assert len(names) > 3
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in llama_arrays().values())
    sizes = [(tmp_path / "out" / name).stat().st_size for name in names]
    assert max(sizes) < 3000
    assert stored_arrays(tmp_path / "out").keys() == stored_arrays(source).keys()


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    with open_checkpoint(source) as opened:
        opened.contents.check_unchanged()
        (source / "config.json").write_text((source / "config.json").read_text() + " ")
        with pytest.raises(BadCheckpointError, match=r"config.json: changed while it was"):
            opened.contents.check_unchanged()


def test_inspect_shows_a_folder(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "tokenizer.json")
    out = accepted("inspect", source, "--tensors", "--health").out
    assert "Hugging Face (safetensors)" in out
    assert "tokenizer files: tokenizer.json" in out
    assert "kv_group=2 query_per_group=2" in out


def test_the_one_rank_there_is_may_be_asked_for(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    grow_checkpoint(source, tmp_path / "out", request=LayoutRequest(1, 1, 1))
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("factor", "told"), [(8.0, False), (32.0, True)])
def test_a_rotary_factor_that_stock_megatron_ignores_is_told(
    factor: float, told: bool, tmp_path: Path
) -> None:
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    source = make_folder(tmp_path / "hf", fields(rope_scaling=scaling))
    outcome = accepted("import", source, tmp_path / "megatron")
    assert ("pretrain_gpt.py computes with 8 " in outcome.err) == told
    assert "rotary scaling" not in accepted("export", source, tmp_path / "again").err
