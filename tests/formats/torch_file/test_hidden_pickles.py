"""Bytes of an ``_extra_state`` are loaded by a trainer: no program may hide in them."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit, rank_files
from hostile_pickles import OWN_PACKAGE, SYSTEM, call, named, text
from pico import make_checkpoint

EXTRA = "decoder.layers.0.mlp.linear_fc1._extra_state"
PROGRAM = call(SYSTEM, "true")


class Program:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("true",)


def saved(value: object, **options: Any) -> bytes:
    output = io.BytesIO()
    torch.save(value, output, **options)
    return output.getvalue()


def as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def by_stride(data: bytes, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """A view of every second element of a matrix, which has the bytes in its order."""
    elements = as_tensor(data + bytes(-len(data) % 16)).view(dtype)
    return torch.stack((elements, torch.zeros_like(elements)), 1)[:, 0]


class FromNumpy:
    """A tensor that torch makes of a numpy array when it is loaded."""

    def __init__(self, data: bytes) -> None:
        self.data = np.frombuffer(data, np.uint8)

    def __reduce__(self) -> tuple[object, ...]:
        function = torch._utils._rebuild_device_tensor_from_numpy
        return function, (self.data, torch.uint8, "cpu", False)


def at_its_end(data: bytes) -> io.BytesIO:
    """A BytesIO whose position is behind something that is no pickle."""
    state = io.BytesIO(b"\0" * 7 + data)
    state.seek(7)
    return state


CARRIERS: dict[str, Callable[[bytes], object]] = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "BytesIO": io.BytesIO,
    "tensor": as_tensor,
    "part of a tensor": lambda data: torch.cat((torch.ones(3).byte(), as_tensor(data)))[3:],
    "strided": by_stride,
    "strided numbers": lambda data: by_stride(data, torch.float32),
    "numbers": lambda data: as_tensor(data + bytes(-len(data) % 8)).view(torch.int64),
    "transposed": lambda data: by_stride(data).reshape(2, -1).t().contiguous().t(),
    "of numpy": FromNumpy,
    "from a position on": at_its_end,
    "deep": lambda data: {"state": [(data,)]},
    "a pickle in a pickle": lambda data: pickle.dumps({"x": io.BytesIO(data)}),
}

PROGRAMS = {
    "pickle": b"\x80\x02" + PROGRAM + b".",
    "protocol 4": pickle.dumps(Program(), 4),
    "protocol 0": b"cos\nsystem\n(S'true'\ntR.",
    "behind a number of C": b"I0x10\n0cos\nsystem\n(S'true'\ntR.",
    "behind a long number of C": b"L0x10\n0cos\nsystem\n(S'true'\ntR.",
    "behind a text of utf-8": b"S'\xc3\xa9'\n0cos\nsystem\n(S'true'\ntR.",
    "unknown package": b"\x80\x02" + named(OWN_PACKAGE, "own_function") + b".",
    "Python 2": b"\x80\x02" + call(named("commands", "getoutput"), "true") + b".",
    "cut off behind it": b"\x80\x02" + PROGRAM,
    "behind another": pickle.dumps(1) + b"\x80\x02" + PROGRAM + b".",
    "torch.save": saved({"x": Program()}),
    "torch.save of old": saved({"x": Program()}, _use_new_zipfile_serialization=False),
    "extension": b"\x80\x02\x82\x01" + text("true") + b"\x85R.",
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("honest") / "source", "llama")


def with_state(source: Path, tmp_path: Path, state: object) -> Path:
    (file,) = rank_files(source)
    own = tmp_path / "source" / file.relative_to(source)
    own.parent.mkdir(parents=True)
    own.write_bytes(file.read_bytes())
    (tmp_path / "source/latest_checkpointed_iteration.txt").write_text("30")
    edit(own, lambda content: content["model"].update({EXTRA: state}))
    return tmp_path / "source"


CASES = [
    (program, carrier)
    for number, program in enumerate(PROGRAMS)
    for carrier in [list(CARRIERS)[number % len(CARRIERS)], "bytes"]
]


def test_loading_the_bytes_runs_a_program(tmp_path: Path) -> None:
    """The control: Python's unpickler carries out what looks odd."""
    canary = tmp_path / "canary"
    for name in ("behind a number of C", "behind a long number of C"):
        pickle.loads(PROGRAMS[name].replace(b"true", f"touch {canary}".encode()))
        assert canary.exists(), name
        canary.unlink()


def test_a_carrier_has_the_bytes() -> None:
    """The control: what Transformer Engine would unpickle begins with what was put in."""
    data = PROGRAMS["pickle"]
    for name in ("strided", "strided numbers", "numbers", "transposed", "of numpy"):
        state = CARRIERS[name](data)
        file = io.BytesIO(saved(state))
        state = torch.load(file, weights_only=False)
        assert isinstance(state, torch.Tensor)
        assert state.numpy().tobytes().startswith(data), name


@pytest.mark.parametrize(("program", "carrier"), sorted(set(CASES)))
def test_a_hidden_program_is_refused(
    honest: Path, tmp_path: Path, program: str, carrier: str
) -> None:
    source = with_state(honest, tmp_path, CARRIERS[carrier](PROGRAMS[program]))
    out = tmp_path / "out"
    outcome = refused(3, "_extra_state", "reshard", source, out, "--tp", 2, place=tmp_path)
    assert EXTRA in outcome.err


HONEST: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "no bytes": lambda: torch.empty(0, dtype=torch.uint8),
    "text": lambda: b"scales",
    "pickle": lambda: as_tensor(pickle.dumps({"scale": np.ones(3, np.float32), "n": [1, 2.5]})),
    "torch.save": lambda: io.BytesIO(saved({"scale_fwd": torch.ones(3), "recipe": None})),
    "None": lambda: io.BytesIO(saved(None)),
    "random": lambda: as_tensor(bytes(np.random.default_rng(3).integers(0, 256, 3000, np.uint8))),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_state_is_carried(honest: Path, tmp_path: Path, kind: str) -> None:
    source = with_state(honest, tmp_path, HONEST[kind]())
    accepted("reshard", source, tmp_path / "out", "--tp", 1)
    (file,) = rank_files(tmp_path / "out")
    found = torch.load(file, weights_only=False)["model"][EXTRA]
    wanted = HONEST[kind]()
    if isinstance(wanted, io.BytesIO):
        found, wanted = found.getvalue(), wanted.getvalue()
    assert torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted


def test_a_state_that_is_none_is_refused(honest: Path, tmp_path: Path) -> None:
    source = with_state(honest, tmp_path, torch.zeros(5 << 20, dtype=torch.uint8))
    outcome = flmgrow("inspect", source)
    assert outcome.code == 3
    assert "wanted at most" in outcome.err
