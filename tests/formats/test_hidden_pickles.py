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


CARRIERS: dict[str, Callable[[bytes], object]] = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "BytesIO": io.BytesIO,
    "tensor": as_tensor,
    "part of a tensor": lambda data: torch.cat((torch.ones(3).byte(), as_tensor(data)))[3:],
    "deep": lambda data: {"state": [(data,)]},
    "a pickle in a pickle": lambda data: pickle.dumps({"x": io.BytesIO(data)}),
}

PROGRAMS = {
    "pickle": b"\x80\x02" + PROGRAM + b".",
    "protocol 4": pickle.dumps(Program(), 4),
    "protocol 0": b"cos\nsystem\n(S'true'\ntR.",
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
