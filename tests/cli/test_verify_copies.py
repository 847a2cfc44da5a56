"""Every stored value is compared, also those that the reference forward never reads.

Each rank of a trainer loads its own copy of a norm, of a tied embedding, and of their states. So
any one element of any array in any file is changed here, and verify must not pass.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from shutil import copytree

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow
from damage import State, correct_sums, edit, rank_files
from pico import CONFIGS, even, make_checkpoint
from pico_distributed import distribute

from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.formats.pieces import as_bytes, read_whole

FORMATS = ("megatron", "distributed", "torch_dist", "huggingface")
GROWTH = ("--ffn-hidden-size", 24, "--method", "zero")


@pytest.fixture(scope="module", params=FORMATS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and what grew from it, as large as copies of all kinds need."""
    place = tmp_path_factory.mktemp(request.param)
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    single = request.param == "huggingface"
    source = make_checkpoint(
        place / "source", "llama", layout, dtype="bfloat16", optimizer=not single
    )
    if request.param == "distributed":
        distribute(source)
    written = "megatron" if request.param == "distributed" else request.param
    accepted("expand", source, place / "grown", *GROWTH, "--format", written)
    return place


def stored(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Where each array lies: file, first byte, number of bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    data = {path: path.read_bytes() for path in files}
    with with_optimizer(open_checkpoint(folder)) as opened:
        for reader in opened.readers.values():
            for array in reader.arrays:
                raw = bytes(as_bytes(np.ascontiguousarray(read_whole(array)).reshape(-1)))
                for path, content in data.items():
                    if (at := content.find(raw)) >= 0:
                        yield path, at, len(raw)


def flipped(pair: Path, tmp_path: Path, number: int) -> tuple[Path, str]:
    """Return a copy of the result in which one bit of its array ``number`` is another."""
    copytree(pair / "grown", tmp_path / "grown")
    places = list(stored(tmp_path / "grown"))
    path, start, count = places[number % len(places)]
    data = bytearray(path.read_bytes())
    draw = Random(number)
    data[start + draw.randrange(count)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return tmp_path / "grown", path.name


@pytest.mark.parametrize("number", [0, 7, 101])
def test_any_bit_of_any_array_is_found_without_checksums(
    pair: Path, tmp_path: Path, number: int
) -> None:
    grown, file = flipped(pair, tmp_path, number)
    outcome = flmgrow("verify", pair / "source", grown, "--skip-checksums")
    assert outcome.code in (1, 3), outcome.out
    assert file in outcome.out + outcome.err


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_array_is_compared(pair: Path, tmp_path: Path) -> None:
    for number in range(len(list(stored(pair / "grown")))):
        grown, _ = flipped(pair, tmp_path / str(number), number)
        outcome = flmgrow("verify", pair / "source", grown, "--skip-checksums", "--no-receipt")
        assert outcome.code in (1, 3), (number, outcome.out)


def test_no_array_is_left_out(pair: Path) -> None:
    """What is compared is at least every tensor that torch finds in the files."""
    out = accepted("verify", pair / "source", pair / "grown", "--no-receipt").out
    assert out.splitlines()[-1] == "equal"
    with with_optimizer(open_checkpoint(pair / "grown")) as opened:
        readers = opened.readers.values()
        count = sum(int(np.prod(a.placement.shape)) for r in readers for a in r.arrays)
    assert f"{count:,} " in out


def add(content: State, key: str) -> None:
    content["model"][key][3] += 0.5


def moment(content: State, key: str) -> None:
    inner = content["optimizer"]["optimizer"]
    inner["state"][inner["param_groups"][1]["params"][0]][key] += 1


COPIES = {
    "tied embedding": (1, lambda c: add(c, "output_layer.weight")),
    "norm": (2, lambda c: add(c, "decoder.layers.0.input_layernorm.weight")),
    "moment": (2, lambda c: moment(c, "exp_avg")),
    "second moment": (3, lambda c: moment(c, "exp_avg_sq")),
    "master": (2, lambda c: c["optimizer"]["fp32_from_fp16_params"][1][0].add_(1)),
}


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("legacy")
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    source = make_checkpoint(place / "a", "llama", layout, dtype="bfloat16", optimizer=True)
    accepted("expand", source, place / "b", *GROWTH)
    return place


@pytest.mark.parametrize("which", COPIES)
@pytest.mark.parametrize("manifest", [True, False])
def test_a_copy_in_the_result_that_is_another_is_named(
    legacy: Path, tmp_path: Path, which: str, manifest: bool
) -> None:
    """With sums that are right again, and with nothing that says how it came about, too."""
    rank, change = COPIES[which]
    copytree(legacy / "b", tmp_path / "b")
    file = rank_files(tmp_path / "b")[rank]
    edit(file, change)
    correct_sums(tmp_path / "b")
    if not manifest:
        for path in tmp_path.rglob("flmgrow.json"):
            path.unlink()
    outcome = flmgrow("verify", legacy / "a", tmp_path / "b")
    assert outcome.code == 1
    assert "DIFFERENT  copies in b" in outcome.out
    assert f"{file.parent.name}/{file.name}" in outcome.out
    assert outcome.out.splitlines()[-1] == "NOT EQUAL"


@pytest.mark.parametrize("which", ["tied embedding", "moment"])
def test_a_copy_in_the_source_that_is_another_is_told(
    legacy: Path, tmp_path: Path, which: str
) -> None:
    rank, change = COPIES[which]
    copytree(legacy / "a", tmp_path / "a")
    edit(rank_files(tmp_path / "a")[rank], change)
    outcome = flmgrow("verify", tmp_path / "a", legacy / "b", "--no-receipt")
    assert outcome.code == 1
    assert "DIFFERENT  copies in a" in outcome.out
    accepted("expand", tmp_path / "a", tmp_path / "c", *GROWTH, "--replicated", "rank0")
    outcome = accepted("verify", tmp_path / "a", tmp_path / "c")
    assert "note       copies in a" in outcome.out
    assert "the first is taken, as --replicated rank0 said: mp_rank_" in outcome.out
    assert outcome.out.splitlines()[-1] == "equal"


def test_two_layouts_of_one_model_are_proved_without_a_manifest(
    legacy: Path, tmp_path: Path
) -> None:
    """Neither grew from the other, and still all values are the same."""
    accepted("reshard", legacy / "a", tmp_path / "b", "--tp", 4, "--pp", 1)
    accepted("reshard", legacy / "a", tmp_path / "c", "--tp", 1, "--pp", 4)
    outcome = accepted("verify", tmp_path / "b", tmp_path / "c")
    assert "ok         elements" in outcome.out
    assert outcome.out.splitlines()[-1] == "equal"


def test_a_source_that_was_saved_anew_is_still_the_one_it_grew_from(
    legacy: Path, tmp_path: Path
) -> None:
    copytree(legacy / "a", tmp_path / "a")
    for file in rank_files(tmp_path / "a"):
        torch.save({**torch.load(file, weights_only=False), "saved": "anew"}, file)
    outcome = accepted("verify", tmp_path / "a", legacy / "b", "--no-receipt")
    assert "ok         elements" in outcome.out
