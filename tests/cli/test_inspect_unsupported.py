"""``inspect --tensors`` lists what is stored even of a model that is not supported, and says why
it is not.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, check_lines, flmgrow
from damage import edit_all, with_arguments
from hf_folders import make_folder
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint

TABLE = "embedding.word_embeddings.weight"


def with_experts(content: dict[str, Any]) -> None:
    content["args"].num_experts = 8
    content["model"]["decoder.layers.0.mlp.router.weight"] = torch.zeros(8, 12)


def before_core(content: dict[str, Any]) -> None:
    table = content["model"][TABLE]
    content["model"] = {"language_model": {"embedding": {"word_embeddings": {"weight": table}}}}


@pytest.mark.parametrize(
    ("change", "says", "rows"),
    [
        (with_experts, "does not support mixture of experts",
         ["decoder.layers.0.mlp.router.weight", "float32 [8, 12]"]),
        (before_core, "", ["language_model.embedding.word_embeddings.weight", "float64 [32, 12]"]),
        (lambda content: content.pop("args"), "has no args", [TABLE, "float64 [32, 12]"]),
        (with_arguments(num_layers=7), "args.num_layers is 7", [TABLE]),
    ],
)  # fmt: skip
def test_rank_by_rank(
    tmp_path: Path, change: Callable[[Any], None], says: str, rows: list[str]
) -> None:
    source = make_checkpoint(tmp_path, "llama", even(CONFIGS["llama"], tp=2))
    edit_all(source, change)
    seen = flmgrow("inspect", source, "--tensors")
    assert seen.code == 3
    check_lines(seen.err, says)
    files = [line for line in seen.out.splitlines() if not line.startswith(" ")]
    assert files == [f"mp_rank_0{rank}/model_optim_rng.pt" for rank in (0, 1)]
    assert all(row in seen.out for row in rows)
    without = flmgrow("inspect", source)
    assert without.out == ""
    assert "inspect --tensors lists the arrays that are stored" in without.err


def test_a_distributed_checkpoint_as_data(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", tp=2, num_experts=4)
    seen = flmgrow("inspect", source, "--tensors", "--json")
    data = json.loads(seen.out)
    assert (seen.code, "mixture of experts" in data["why_not"]) == (3, True)
    assert data["stored"][".metadata"][TABLE] == {"dtype": "float64", "shape": [56, 12]}
    assert "decoder.layers.mlp.linear_fc1.weight" in data["stored"][".metadata"]


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "a")
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "mixtral"}))
    seen = flmgrow("inspect", source, "--tensors")
    assert seen.code == 3
    check_lines(seen.err, "mixtral")
    assert "model.safetensors\n" in seen.out
    assert "model.embed_tokens.weight" in seen.out


def test_a_supported_one_is_listed_by_its_logical_tensors(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "llama")
    assert "attention_out" in accepted("inspect", source, "--tensors").out
    assert flmgrow("inspect", tmp_path / "nowhere", "--tensors").out == ""
