"""A tied flag beside another stored head has two readings, and neither is taken unasked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import tokens_for
from hf_folders import fields, llama_arrays, make_folder
from safetensors.torch import load_file, save_file
from transformers_models import VOCAB, exact_logits, save_model

from flmgrow.formats.opening import open_checkpoint

TOKENS = tokens_for(VOCAB, length=24)
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WAYS = "transformers 5 computes with that head, which --untie keeps; transformers 4 with the table"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "hf"
    save_model("llama tied with biases", folder, torch.float64)
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    tensors[HEAD] = tensors[TABLE] + 0.1 * torch.randn(
        tensors[TABLE].shape, generator=generator, dtype=torch.float64
    )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


GROW = ("--num-layers", 6, "--method", "zero")


@pytest.mark.parametrize("more", [(), ("--replicated", "rank0")])
def test_both_readings_are_named(more: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    for command in (("expand", source, tmp_path / "x", *GROW, *more), ("inspect", source)):
        says = rf"{HEAD}: not equal to .*{TABLE}.*hint: .*{WAYS}"
        refused(3, says, *command, place=tmp_path)


def test_the_stored_head_is_kept(source: Path, tmp_path: Path) -> None:
    """As transformers 5 reads the folder."""
    wanted = exact_logits(source, TOKENS)
    err = accepted("expand", source, tmp_path / "big", *GROW, "--untie").err
    assert f"note: {HEAD} is kept as the model's own (--untie); " in err
    assert (
        json.loads((tmp_path / "big" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    assert (exact_logits(tmp_path / "big", TOKENS) - wanted).abs().max() <= 1e-9
    assert flmgrow("verify", source, tmp_path / "big", "--untie").code == 0
    accepted("import", source, tmp_path / "m", "--untie", "--tp", 2)
    accepted("export", tmp_path / "m", tmp_path / "back")
    assert (exact_logits(tmp_path / "back", TOKENS) - wanted).abs().max() <= 1e-9


def test_the_table_is_kept(source: Path, tmp_path: Path) -> None:
    """As transformers 4 reads the folder."""
    err = accepted("expand", source, tmp_path / "big", *GROW, "--tie").err
    assert f"note: {HEAD} is passed over (--tie); " in err
    without = tmp_path / "without"
    without.mkdir()
    (without / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, without / "model.safetensors", {"format": "pt"})
    off = exact_logits(tmp_path / "big", TOKENS) - exact_logits(without, TOKENS)
    assert off.abs().max() <= 1e-9
    assert flmgrow("verify", source, tmp_path / "big", "--tie").code == 0
    assert (exact_logits(tmp_path / "big", TOKENS) - exact_logits(source, TOKENS)).abs().max() > 0.1


def test_a_difference_behind_the_beginning_is_found_before_anything_is_written(
    tmp_path: Path,
) -> None:
    arrays = llama_arrays()
    table = np.tile(arrays[TABLE], (400, 1))
    head = table.copy()
    head[-1, -1] += 1
    tied = fields(tie_word_embeddings=True, vocab_size=len(table))
    source = make_folder(tmp_path / "hf", tied, {**arrays, TABLE: table, HEAD: head})
    accepted("inspect", source)
    for more in ((), ("--replicated", "rank0")):
        says = f"{HEAD}: not equal .*1 of 76800 entries differ, by up to 1\nhint: .*--untie keeps"
        refused(3, says, "import", source, tmp_path / "m", *more, place=tmp_path)
    accepted("import", source, tmp_path / "m", "--untie")


def test_a_head_that_is_the_table_may_be_kept_or_not(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays[HEAD] = arrays[TABLE]
    source = make_folder(tmp_path / "hf", fields(tie_word_embeddings=True), arrays)
    for more, tied in (((), True), (("--tie",), True), (("--untie",), False)):
        accepted(
            "expand", source, tmp_path / str(more), "--num-layers", 3, "--method", "zero", *more
        )
        with open_checkpoint(tmp_path / str(more)) as opened:
            assert opened.config.tied is tied


def test_without_a_stored_head_growth_writes_one(tmp_path: Path) -> None:
    arrays = {name: array for name, array in llama_arrays().items() if name != HEAD}
    source = make_folder(tmp_path / "hf", fields(tie_word_embeddings=True), arrays)
    accepted("expand", source, tmp_path / "big", "--num-layers", 3, "--method", "zero", "--untie")
    tensors = load_file(tmp_path / "big" / "model.safetensors")
    assert torch.equal(tensors[HEAD], tensors[TABLE])


# --- A config.json that disagrees with the weights


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"intermediate_size": 16}, r"intermediate_size is 16, but model.layers.0.mlp.* has shape "
         r".*, as 12 would have it"),
        ({"vocab_size": 32}, r"vocab_size is 32, but model.embed_tokens.weight has shape .24, 8., "
         "as 24 would"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads is 1, but .*k_proj.weight has shape "
         r".4, 8., as 2 would"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers is 3, but the weights have 2 layers .the "
         r"last has model.layers.1"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers is 1, but the weights have 2 layers"),
        ({"hidden_size": 16, "intermediate_size": 16}, r"shape .*, wanted "),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong_is_named(
    changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    source = make_folder(tmp_path / "hf", fields(**changed))
    refused(3, says, "import", source, tmp_path / "m", place=tmp_path)
