"""Ranks that do not belong together: missing, foreign, of several iterations, or drifted apart."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import accepted, refused
from damage import State, edit, edit_all, rank_files, with_arguments, with_tensor
from pico import CONFIGS, even, make_checkpoint

GROW = ("--ffn-hidden-size", 24, "--method", "zero")
NORM = "decoder.layers.1.input_layernorm.weight"
FOLDER = "iter_0000030"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))


def expand_refused(source: Path, code: int, pattern: str, *options: object) -> None:
    place = source.parent
    refused(code, pattern, "expand", source, place / "out", *GROW, *options, place=place)


# --- ranks


@pytest.mark.parametrize("rank", ["00_000", "00_001", "01_001"])
def test_missing_ranks_are_named(source: Path, rank: str) -> None:
    shutil.rmtree(source / FOLDER / f"mp_rank_{rank}")
    tensor, pipeline = (int(part) for part in rank.split("_"))
    where = rf"missing ranks \(TP {tensor}, PP {pipeline}\); args say TP2 x PP2"
    expand_refused(source, 3, f"{FOLDER}: {where}")


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("mp_rank_02_000", r"unexpected ranks \(TP 2, PP 0\); args say TP2 x PP2"),
        ("mp_rank_1_1", "the same rank as mp_rank_01_001"),
        ("mp_rank_01_001_000", "expert rank"),
    ],
)
def test_extra_ranks_are_named(source: Path, folder: str, says: str) -> None:
    shutil.copytree(source / FOLDER / "mp_rank_01_001", source / FOLDER / folder)
    expand_refused(source, 3, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tensor_model_parallel_size": 4}, r"missing ranks .*\(TP 3, PP 1\).*TP4 x PP2"),
        ({"tensor_model_parallel_size": 1}, r"unexpected ranks \(TP 1, PP 0\).*TP1 x PP2"),
        ({"pipeline_model_parallel_size": 1}, r"unexpected ranks \(TP 0, PP 1\).*TP2 x PP1"),
        ({"pipeline_model_parallel_size": 4}, r"missing ranks .*\(TP 1, PP 3\).*TP2 x PP4"),
        ({"virtual_pipeline_model_parallel_size": 2}, "model0: not there"),
    ],
)
def test_arguments_that_name_another_layout_are_refused(
    source: Path, arguments: State, says: str
) -> None:
    edit_all(source, with_arguments(**arguments))
    expand_refused(source, 3, says)


def test_ranks_of_several_iterations_are_listed(source: Path) -> None:
    edit(rank_files(source)[2], lambda content: content.update(iteration=20))
    listed = "30: mp_rank_00_000, mp_rank_00_001, mp_rank_01_001; 20: mp_rank_01_000"
    expand_refused(source, 3, f"different iterations: {listed}")


def test_ranks_that_disagree_in_arguments_name_all_of_them(source: Path) -> None:
    change = with_arguments(hidden_size=16, apply_layernorm_1p=True, flmgrow_output_multiplier=2.0)
    edit(rank_files(source)[2], change)
    says = (
        "mp_rank_01_000/model_optim_rng.pt: unlike mp_rank_00_000: "
        "args.apply_layernorm_1p is True, not False, args.flmgrow_output_multiplier is 2.0, "
        "not None, args.hidden_size is 16, not 12"
    )
    expand_refused(source, 3, says)


# --- which iteration


@pytest.mark.parametrize("content", [b"", b"\xff\xfe junk", b"-3", b"30\n31", b"\x1b[31m", b"1e3"])
def test_a_tracker_that_names_no_iteration_suggests_one(source: Path, content: bytes) -> None:
    (source / "latest_checkpointed_iteration.txt").write_bytes(content)
    expand_refused(
        source, 3, "iteration.txt: found .*wanted a number.*newest complete .* 30: .*--iteration 30"
    )
    accepted("expand", source, source.parent / "out", *GROW, "--iteration", 30)


@pytest.mark.parametrize("content", [b"99", b"release", b"9" * 64])
def test_a_tracker_that_names_a_missing_folder_suggests_another(
    source: Path, content: bytes
) -> None:
    (source / "latest_checkpointed_iteration.txt").write_bytes(content)
    says = "(iter_0000099|release): is not there|found '9+', wanted a number"
    expand_refused(source, 3, f"({says}).*newest complete .* 30: .*--iteration 30")


def test_only_a_complete_iteration_is_suggested(source: Path) -> None:
    (source / "latest_checkpointed_iteration.txt").unlink()
    (source / "iter_0000050" / "mp_rank_00_000").mkdir(parents=True)
    shutil.copytree(source / FOLDER, source / "iter_0000040")
    shutil.rmtree(source / "iter_0000040" / "mp_rank_00_001")
    expand_refused(source, 3, "has neither rank folders nor latest.*newest complete .* 30: ")


def test_what_is_no_legacy_checkpoint_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    expand_refused(source, 3, "source: no such folder")
    source.mkdir()
    expand_refused(source, 3, "source: is empty")
    (source / "notes.txt").touch()
    expand_refused(source, 3, "neither rank folders nor .*is this a Megatron checkpoint")
    (source / FOLDER).mkdir()
    (source / FOLDER / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (source / "latest_checkpointed_iteration.txt").write_text("30")
    expand_refused(source, 3, r"\.metadata: does not exist, wanted a finished checkpoint")


# --- copies that should be equal


def shifted(weight: torch.Tensor) -> torch.Tensor:
    weight[3:5] += 0.25
    return weight


def test_copies_that_drifted_are_refused_or_taken_from_rank_0(source: Path) -> None:
    edit(rank_files(source)[2], with_tensor(NORM, shifted))
    says = f"mp_rank_01_000/model_optim_rng.pt: {NORM}: not equal to .*mp_rank_00_000/.*{NORM}: "
    says += "2 of 12 entries differ, by up to 0.25.*--replicated rank0"
    expand_refused(source, 3, says)
    accepted("expand", source, source.parent / "out", *GROW, "--replicated", "rank0")
    manifest = json.loads((source.parent / "out" / "flmgrow.json").read_text())
    (line,) = manifest["drift"]
    assert line.startswith(f"mp_rank_01_000/model_optim_rng.pt: {NORM}: not equal")
    assert "2 of 12 entries" in line
    assert manifest["options"]["replicated"] == "rank0"
    assert str(source.parent) not in json.dumps(manifest)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_copies_that_are_not_finite_differ(source: Path, factor: float) -> None:
    edit(rank_files(source)[2], with_tensor(NORM, lambda weight: weight * factor))
    expand_refused(source, 3, f"{NORM}: not equal to .*12 of 12 entries differ")


def test_a_tied_embedding_whose_copies_differ_is_refused(source: Path) -> None:
    edit(rank_files(source)[3], with_tensor("output_layer.weight", shifted))
    says = "mp_rank_01_001/.*output_layer.weight: not equal to .*mp_rank_01_000/.*word_embeddings"
    expand_refused(source, 3, says)
