"""What others read is read: two dtypes, superseded copies, wrong totals; each with a note."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import tokens_for
from hf_folders import llama_arrays, make_folder, write_safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers_models import VOCAB, exact_logits, load_model, model_logits, save_model

from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.pieces import widest
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TOKENS = tokens_for(VOCAB, length=24)


def edit_index(folder: Path, **changed: Any) -> None:
    data = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**data, **changed}))


def placed(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


def computed(folder: Path, place: Path) -> Tensor:
    """What transformers computes in float64 with the very values of a folder."""
    place.mkdir()
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    tensors = {name: tensor.double() for shard in shards for name, tensor in shard.items()}
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    return exact_logits(place, TOKENS)


# --- Two dtypes in one folder


def test_each_tensor_is_read_at_its_own_dtype(tmp_path: Path) -> None:
    """Norms in float32, one layer's matrix too; the rest bfloat16, as transformers computes it."""
    source = tmp_path / "hf"
    save_model("llama", source, torch.bfloat16)
    path = source / "model.safetensors"
    odd = "model.layers.1.mlp.up_proj.weight"
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor.float() + 1e-4 * torch.rand(tensor.shape, generator=drawn)
        if "norm" in name or name == odd
        else tensor.clone()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    outcome = accepted("import", source, tmp_path / "m", "--tp", 2)
    assert (
        f"note: 10 tensors are float32 (model.layers.0.input_layernorm.weight), {len(tensors) - 10}"
        " bfloat16: all are taken as float32, which holds each exactly, and written so (rounded "
        "with --dtype bfloat16)\n" in outcome.err
    )
    with open_checkpoint(tmp_path / "m") as opened:
        assert opened.dtype == "float32"
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), TOKENS)
    wanted = computed(source, tmp_path / "wanted")
    assert (found - wanted).abs().max() <= 1e-9
    accepted("expand", source, tmp_path / "big", "--num-layers", 6, "--method", "zero")
    assert (computed(tmp_path / "big", tmp_path / "grown") - wanted).abs().max() <= 1e-9
    assert flmgrow("verify", source, tmp_path / "big").code == 0
    accepted("export", source, tmp_path / "half", "--dtype", "bfloat16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[name], tensors[name].bfloat16()) for name in tensors)


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        ({"bfloat16"}, "bfloat16"),
        ({"bfloat16", "float16"}, "float32"),
        ({"bfloat16", "float32"}, "float32"),
        ({"float16", "float64"}, "float64"),
    ],
)
def test_the_widest_dtype_holds_all(dtypes: set[str], wanted: str) -> None:
    assert widest(dtypes) == wanted


def test_ranks_of_a_megatron_checkpoint_must_still_agree(tmp_path: Path) -> None:
    """Control: there, two dtypes of one tensor are two runs mixed up."""
    from flmgrow.errors import BadCheckpointError
    from flmgrow.formats.reading import LogicalReader

    arrays = llama_arrays()
    name = "model.layers.1.mlp.up_proj.weight"
    arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)
    source = make_folder(tmp_path / "hf", arrays=arrays)
    with open_checkpoint(source) as opened:
        pieces, tensors = opened.reader.arrays, opened.reader.tensors
        assert opened.reader.dtype("up") == np.float32
        with pytest.raises(BadCheckpointError, match="elsewhere float32"):
            LogicalReader(tensors, opened.stored_sizes, pieces)


# --- Indexes


def test_a_wrong_total_is_told_and_no_hindrance(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", shards=2)
    total = sum(array.nbytes for array in llama_arrays().values())
    assert accepted("inspect", source).err == ""
    edit_index(source, metadata={"total_size": 7})
    note = f"note: {INDEX}: total_size: found 7, the tensors have {total} bytes\n"
    assert accepted("inspect", source).err == note
    edit_index(source, metadata=None)
    assert accepted("inspect", source).err == ""


def overlaid(folder: Path, name: str) -> str:
    """Lay a changed copy of a tensor of the first shard into a file of that name; return its key.

    The index names the copy.
    """
    make_folder(folder, shards=2)
    key = next(k for k, file in placed(folder).items() if file == FIRST and "mlp" in k)
    write_safetensors(folder / name, {key: llama_arrays()[key] * 2})
    edit_index(folder, weight_map={**placed(folder), key: name})
    return key


def test_of_two_copies_the_index_decides(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    key = overlaid(source, "model-overlay-00001.safetensors")
    note = (
        f"note: 1 tensors lie in several shards ({key} in {FIRST} and "
        "model-overlay-00001.safetensors): the index decides, which names "
        "model-overlay-00001.safetensors\n"
    )
    assert accepted("export", source, tmp_path / "out").err == note
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in llama_arrays().items():
        assert np.array_equal(out[name].numpy(), values * 2 if name == key else values)


def test_it_is_told_where_transformers_would_take_the_other_copy(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    key = overlaid(source, "a.safetensors")
    err = accepted("inspect", source).err
    assert f"note: {key}: transformers does not ask the index, and takes the copy in {FIRST}" in err


def test_transformers_takes_the_copy_that_comes_last(tmp_path: Path) -> None:
    """The two notes are right: it loads the copy of the last shard, whatever the index says."""
    source = tmp_path / "hf"
    save_model("llama", source, torch.float32, "30KB")
    before = model_logits(load_model(source, torch.float32)[0], TOKENS)
    names = placed(source)
    key = "model.norm.weight"
    values = load_file(source / names[key])[key].clone()
    for overlay, changes in (("a.safetensors", False), ("z.safetensors", True)):
        save_file({key: values * 2}, source / overlay, {"format": "pt"})
        edit_index(source, weight_map={**names, key: overlay})
        after = model_logits(load_model(source, torch.float32)[0], TOKENS)
        assert bool((after - before).abs().max() > 1e-3) is changes


def test_one_file_may_have_an_index_that_names_it(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    names = dict.fromkeys(llama_arrays(), "model.safetensors")
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert accepted("export", source, tmp_path / "out").err == ""
    names["model.norm.weight"] = "other.safetensors"
    write_safetensors(source / "other.safetensors", {"model.norm.weight": np.ones(8, np.float32)})
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "1 tensors lie in several shards" in accepted("inspect", source).err
    names = dict.fromkeys(names, "other.safetensors")
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    refused(3, "has both model.safetensors and", "inspect", source, place=tmp_path)


def test_a_null_metadata_is_none(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    path = source / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = {**json.loads(raw[8 : 8 + size]), "__metadata__": None}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    assert len(load_file(path)) == len(llama_arrays())
    accepted("import", source, tmp_path / "out")


def test_a_shard_of_an_earlier_save_is_removed_as_the_hint_says(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", shards=2)
    stale = source / "model-00001-of-00009.safetensors"
    stale.write_bytes(next(source.glob("model-00001-of-00002.safetensors")).read_bytes())
    told = refused(3, "is a shard that the index does not name", "inspect", source, place=tmp_path)
    assert f"hint: remove {stale.name} if an earlier save left them behind" in told.err
    stale.unlink()
    accepted("inspect", source)
