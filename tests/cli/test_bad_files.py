"""A damaged or hostile file of a rank is refused and named, and nothing in it is ever run."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import (
    edit,
    flip_bit,
    rank_files,
    read_records,
    record_of,
    replace_record,
    with_tensor,
    write_records,
)
from pico import CONFIGS, even, make_checkpoint

Damage = Callable[[Path], object]
DOWN = "decoder.layers.1.mlp.linear_fc2.weight"
GROW = ("--ffn-hidden-size", 24, "--method", "zero")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))


def cut(count: int) -> Damage:
    return lambda file: file.write_bytes(file.read_bytes()[:count])


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"PK polyglot")


def twice(file: Path) -> None:
    records = read_records(file)
    write_records(file, [*records, records[0]])


def other_case(file: Path) -> None:
    (name, data), *rest = read_records(file)
    write_records(file, [(name, data), (name.replace("data.pkl", "DATA.PKL"), data), *rest])


def compressed(file: Path) -> None:
    write_records(file, read_records(file), zipfile.ZIP_DEFLATED)


def torchscript(file: Path) -> None:
    records = read_records(file)
    folder = records[0][0].partition("/")[0]
    write_records(file, [*records, (f"{folder}/constants.pkl", b"")])


def big_endian(file: Path) -> None:
    replace_record(file, "/byteorder", lambda _: b"big")


def fewer_bytes(file: Path) -> None:
    replace_record(file, record_of(file, DOWN), lambda data: data[:-8])


def instead(content: bytes) -> Damage:
    return lambda file: file.write_bytes(content)


def older_torch(file: Path) -> None:
    content = torch.load(file, weights_only=False)
    torch.save(content, file, _use_new_zipfile_serialization=False)


def tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo_instead(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def loop_instead(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(cut(-1), "truncated", id="one byte short"),
        pytest.param(cut(-22), "truncated", id="no end record"),
        pytest.param(cut(-98), "truncated", id="no end locator"),
        pytest.param(cut(20_000), "truncated", id="half a file"),
        pytest.param(cut(0), "0 bytes are too few", id="empty"),
        pytest.param(append, "truncated or has trailing bytes", id="trailing bytes"),
        pytest.param(
            lambda file: flip_bit(file, "/data.pkl", 900),
            "data.pkl: damaged: .* CRC32",
            id="bit flipped in the pickle",
        ),
        pytest.param(twice, "two records are called", id="record twice"),
        pytest.param(other_case, "two records are called", id="record twice but for its case"),
        pytest.param(compressed, "is compressed", id="compressed"),
        pytest.param(torchscript, "TorchScript", id="TorchScript"),
        pytest.param(big_endian, "byteorder", id="big-endian"),
        pytest.param(fewer_bytes, r"record has \d+ bytes, .* needs", id="more elements than bytes"),
        pytest.param(instead(b"hello"), "too few", id="text"),
        pytest.param(
            instead(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
            "no zip header",
            id="Git LFS pointer",
        ),
        pytest.param(instead(pickle.dumps({}) * 20), "no zip header", id="bare pickle"),
        pytest.param(older_torch, "no zip header .*before 1.6", id="format of torch before 1.6"),
        pytest.param(tar, "no zip header", id="tar of the oldest torch"),
        pytest.param(Path.unlink, "does not exist", id="missing"),
        pytest.param(folder_instead, "is a folder", id="folder"),
        pytest.param(fifo_instead, "not a regular file", id="FIFO"),
        pytest.param(loop_instead, "loop of symbolic links", id="loop of links"),
        pytest.param(lambda file: torch.save([1], file), "holds a list", id="list"),
    ],
)
def test_a_damaged_file_is_refused_and_named(
    source: Path, tmp_path: Path, damage: Damage, says: str
) -> None:
    damage(rank_files(source)[-1])
    pattern = f"mp_rank_01_001/model_optim_rng.pt: .*{says}"
    refused(3, pattern, "expand", source, tmp_path / "out", *GROW, place=tmp_path)
    refused(3, pattern, "inspect", source, place=tmp_path)


def test_a_flipped_bit_in_the_weights_is_found_while_reading(source: Path, tmp_path: Path) -> None:
    file = rank_files(source)[-1]
    flip_bit(file, record_of(file, DOWN), 40, 3)
    pattern = f"mp_rank_01_001/model_optim_rng.pt: .*damaged: .*CRC32.*{DOWN}"
    refused(3, pattern, "expand", source, tmp_path / "out", *GROW, place=tmp_path)
    refused(3, pattern, "reshard", source, tmp_path / "out", "--tp", 1, place=tmp_path)


def test_a_flipped_bit_in_the_weights_is_found_by_verify(source: Path, tmp_path: Path) -> None:
    accepted("expand", source, tmp_path / "out", *GROW)
    file = rank_files(tmp_path / "out")[0]
    flip_bit(file, record_of(file, DOWN), 40, 3)
    outcome = flmgrow("verify", source, tmp_path / "out")
    assert outcome.code == 1
    assert "DIFFERENT  checksums of out" in outcome.out
    assert "mp_rank_00_000" in outcome.out


# --- programs


class Program:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "place",
    [
        lambda content, program: content.update(extra=program),
        lambda content, program: setattr(content["args"], "seed", program),
        lambda content, program: setattr(content["args"], "hidden_size", program),
        lambda content, program: content["model"].update({DOWN: program}),
        lambda content, program: content["model"].update({"output_layer._extra_state": program}),
        lambda content, program: content.update(rng_state=[{"deep": [(program,)]}]),
    ],
    ids=["entry", "argument", "size", "weight", "extra state", "random state"],
)
def test_a_program_in_a_pickle_is_named_never_run_and_never_handed_on(
    source: Path, tmp_path: Path, place: Callable[[object, Program], object], protocol: int
) -> None:
    file, canary = rank_files(source)[-1], tmp_path / "canary"
    content = torch.load(file, weights_only=False)
    place(content, Program(canary))
    torch.save(content, file, pickle_protocol=protocol)
    for command in (("expand", source, tmp_path / "out", *GROW), ("inspect", source)):
        pattern = r"mp_rank_01_001/.*names posix.system.*nothing was run"
        refused(3, pattern, *command, place=tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval", "builtins exec", "builtins getattr", "builtins __import__",
        "subprocess Popen", "functools partial", "runpy run_path", "webbrowser open",
        "importlib import_module", "torch.hub load", "torch load", "torch.jit load",
        "numpy load", "numpy.testing._private.utils runstring", "pip main", "some.package run",
    ],
)  # fmt: skip
def test_names_that_may_run_anything_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    module, _, function = name.partition(" ")
    call = f"c{module}\n{function}\n(tR".encode()

    def beside_the_rest(data: bytes) -> bytes:
        return data[:2] + b"(" + call + data[2:-1] + b"t."

    replace_record(rank_files(source)[0], "/data.pkl", beside_the_rest)
    refused(3, f"names {module}.{function}", "inspect", source, place=tmp_path)


# --- weights that are no plain arrays of the right shape


def in_a_larger_storage(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat((weight, weight))[: len(weight)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda w: w[:-1].clone(), r"shape \(11, 10\), wanted \(12, 10\)"),
        (lambda w: w.flatten(), r"shape \(120,\), wanted \(12, 10\)"),
        (lambda w: w.to_sparse(), "not a plain dense tensor .*sparse"),
        (lambda w: torch.nn.Parameter(w.float()), "dtype float32, elsewhere float64"),
        (lambda w: w.long(), "dtype int64, wanted one of"),
        (lambda w: w.to(torch.complex128), "dtype complex128, wanted one of"),
        (lambda w: w.to(torch.float8_e4m3fn), "dtype float8_e4m3fn, wanted one of"),
        (lambda _: b"scales", "not a plain dense tensor"),
        (lambda _: None, "not there"),
    ],
)
def test_a_weight_of_another_kind_is_refused_and_named(
    source: Path, tmp_path: Path, make: Callable[[torch.Tensor], object], says: str
) -> None:
    edit(rank_files(source)[-1], with_tensor(DOWN, make))
    pattern = f"mp_rank_01_001/model_optim_rng.pt: {DOWN}: .*{says}"
    refused(3, pattern, "expand", source, tmp_path / "out", *GROW, place=tmp_path)


def test_a_weight_that_is_part_of_a_larger_storage_is_read(source: Path, tmp_path: Path) -> None:
    edit(rank_files(source)[-1], with_tensor(DOWN, in_a_larger_storage))
    accepted("expand", source, tmp_path / "out", *GROW)
    accepted("verify", source, tmp_path / "out")
