"""No pickle makes the unpickler call, import, or take more memory than the file gives it."""

import argparse
import collections
import os
import pathlib
import pickle
import signal
import struct
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inert_pickles import encode, program, read, watching

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.values import Global, Opaque


@pytest.fixture
def watched() -> Iterator[list[str]]:
    with watching() as events:
        yield events


def binary_name(module: str, name: str) -> bytes:
    parts = (
        pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name)
    )
    return b"".join(parts) + pickle.STACK_GLOBAL


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "getoutput"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("runpy", "_run_code"),
        ("torch.hub", "load_state_dict_from_url"),
        ("torch.utils.collect_env", "run"),
        ("timeit", "timeit"),
        ("pip", "main"),
        ("importlib", "import_module"),
        ("pty", "spawn"),
        ("numpy.testing._private.utils", "runstring"),
        ("shutil", "rmtree"),
    ],
)
def test_nothing_is_ever_called(
    module: str, name: str, protocol: int, tmp_path: pathlib.Path, watched: list[str]
) -> None:
    canary = tmp_path / "canary"
    known = set(sys.modules)
    named = binary_name(module, name) if protocol == 4 else encode(Global(module, name))
    call = named + encode((f"touch {canary}",)) + pickle.REDUCE
    watched.clear()
    inert = read(pickle.PROTO + bytes([protocol]) + call + pickle.STOP)
    to_pickle(inert)
    assert watched == []
    assert set(sys.modules) == known
    assert not canary.exists()
    assert isinstance(inert, Opaque)
    assert str(inert.function) == f"{module}.{name}"


def test_an_object_that_runs_itself_is_only_data(
    tmp_path: pathlib.Path, watched: list[str]
) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    data = pickle.dumps({"model": Payload()}, 2)
    watched.clear()
    inert = read(data)
    assert watched == []
    assert not canary.exists()
    assert inert["model"].function == Global("posix", "system")
    pickle.loads(data)  # the canary works
    assert canary.exists()


def test_a_call_for_memory_gets_none() -> None:
    huge = read(program(Opaque("reduce", Global("builtins", "bytearray"), (3_000_000_000,))))
    assert isinstance(huge, Opaque)


def test_far_references_cost_nothing() -> None:
    far = pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"
    assert read(b"\x80\x02]" + far + b".") == []


def test_copies_are_bounded() -> None:
    """A text of 1000 characters, encoded 1000 times over, is more data than the file has."""
    text = pickle.BINUNICODE + struct.pack("<I", 1000) + b"x" * 1000 + pickle.BINPUT + b"\0"
    encoder = pickle.GLOBAL + b"_codecs\nencode\n" + pickle.BINPUT + b"\1"
    latin = encode("latin1")[:-2] + pickle.BINPUT + b"\2"
    call = b"h\1h\0h\2" + pickle.TUPLE2 + pickle.REDUCE
    with pytest.raises(BadCheckpointError, match="copy more data than the file has"):
        read(b"\x80\x02" + b"(" + text + encoder + latin + call * 1000 + b"t.")


@pytest.mark.slow
def test_tuples_nested_200_000_deep() -> None:
    data = b"\x80\x02)" + pickle.TUPLE1 * 200_000 + b"."
    inert = read(data)
    assert list(walk_tensors(inert)) == []
    written, _ = to_pickle(inert)
    assert len(written) > 200_000
    with pytest.raises(BadCheckpointError, match="as key of a dict"):
        read(b"\x80\x02})" + pickle.TUPLE1 * 200_000 + b"Ns.")


def test_data_shared_sixty_times_over() -> None:
    """Each list holds the one before twice: 2 ** 60 paths, 60 lists."""
    lists = b"]q\x00" + b"".join(
        b"]q%c(h%ch%ce" % (number + 1, number, number) for number in range(60)
    )
    assert list(walk_tensors(read(b"\x80\x02(" + lists + b"t."))) == []
    tuples = b"Nq\x00" + b"".join(
        b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(60)
    )
    with pytest.raises(BadCheckpointError, match="tuple as key"):
        read(b"\x80\x02(" + tuples + b"}h\x3cNst.")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "ends 1 bytes early"),
        (b"\x80\x02", "ends 1 bytes early"),
        (b"N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x01N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x02.", "a value is missing"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02N.N", "left over"),
        (b"\x80\x02N(.", "a value is missing"),
        (b"\x80\x02(N.", "left over"),
        (b"\x80\x02N0.", "a value is missing"),
        (b"\x80\x02t.", "a mark is missing"),
        (b"\x80\x02N\x85h\x05.", "refers to value 5"),
        (b"\x80\x02\x96" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        (b"\x80\x02\x8e" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        (b"\x80\x02\x8d" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        *(
            (b"\x80\x02" + code + b"\xff" * 8, "bytes early")
            for code in (b"\x8d", b"\x8e", b"\x96")
        ),
        (b"\x80\x04\x95" + b"\0" * 5 + b"\x01\0\0N.", "before its frame"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "integer of 2147483647 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "integer of 4294967295 bytes"),
        (b"\x80\x02X\x01\0\0\0\xff.", "not utf-8"),
        (b"\x80\x02c" + b"a" * 5000 + b"\n", "name without end"),
        (b"\x80\x02cos\nsys tem\n.", "which no class is called"),
        (b"\x80\x02cos\n\x1b[2J\n.", "which no class is called"),
        (b"\x80\x04\x8c\x04os\nx\x8c\x01s\x93.", "which no class is called"),
        (b"\x80\x04N\x8c\x01s\x93.", "a name of NoneType"),
        (b"\x80\x02NNR.", "calls NoneType"),
        (b"\x80\x02cos\nsystem\nNR.", "calls os.system with NoneType"),
        (b"\x80\x02NNb.", "sets the state of NoneType"),
        (b"\x80\x02cos\nsystem\n)RK\x01bK\x01b.", "sets the state of Opaque"),
        (b"\x80\x02NNa.", "appends to NoneType"),
        (b"\x80\x02NNNs.", "sets items of NoneType"),
        (b"\x80\x02}(Nu.", "a key without value"),
        (b"\x80\x02}]Ns.", "list as key"),
        (b"\x80\x02}}Ns.", "dict as key"),
        (b"\x80\x02}(X\x01\0\0\0wNX\x01\0\0\0wNu.", "key 'w' appears twice"),
        (b"\x80\x02}(K\x01N\x88Nu.", "key True appears twice"),
        (b"\x80\x04\x8f(]\x90.", "list as key of a dict or member of a set"),
        (b"\x80\x02NQ.", "no storage"),
        (b"\x80\x02Pabc\n.", "not one torch writes"),
        (b"\x80\x02N2.", "not one torch writes"),
        (b"\x80\x02\x82\x01.", "not one torch writes"),
        (b"\x80\x02\x83\x01\0.", "not one torch writes"),
        (b"\x80\x02\x84\x01\0\0\0.", "not one torch writes"),
        (b"\x80\x02(ios\nsystem\n.", "not one torch writes"),
        (b"\x80\x02(cos\nsystem\no.", "not one torch writes"),
        (b"\x80\x04cos\nsystem\n)}\x92.", "not one torch writes"),
        (b"\x80\x05\x97.", "not one torch writes"),
        (b"\x80\x05]\x98.", "not one torch writes"),
        (b"\x80\x02I1\n.", "not one torch writes"),
        (b"\x80\x02S'a'\n.", "not one torch writes"),
        (b"\x80\x02\x80\x02N.", "not one torch writes"),
        (
            b"\x80\x02c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R.",
            "more than bytes",
        ),
    ],
)
def test_refuses_broken_pickles(data: bytes, found: str) -> None:
    with pytest.raises(BadCheckpointError) as refusal:
        read(data)
    assert refusal.value.message.startswith("some.pt: data.pkl: ")
    assert found in refusal.value.message
    assert refusal.value.message.isprintable()


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flmgrow.formats.torch_file.machine.MAX_INSTRUCTIONS", 1000)
    with pytest.raises(BadCheckpointError, match="more than 1000 instructions"):
        read(b"\x80\x02(" + b"N" * 2000 + b"t.")


def test_names_cannot_smuggle_instructions() -> None:
    with pytest.raises(BadCheckpointError, match="which no class is called"):
        Global("os", "x\ncos\nsystem")


RICH = pickle.dumps(
    [
        {"model": collections.OrderedDict(a=[1, 2.5, "x"], b=(None, True, b"bytes"))},
        argparse.Namespace(hidden_size=64, signal=signal.Signals.SIGTERM),
        np.arange(3),
        {1, 2},
        2**70,
    ],
    2,
)


@settings(max_examples=400)
@given(st.data())
def test_damaged_pickles_are_refused_or_read_as_data(data: st.DataObject) -> None:
    damaged = bytearray(RICH)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                damaged[position] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[position : position + data.draw(st.integers(1, 9))]
            case "insert":
                damaged[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        if not damaged:
            return
    message = "."
    try:
        inert = read(bytes(damaged))
    except BadCheckpointError as refusal:
        message = refusal.message
    else:
        list(walk_tensors(inert))
        read(to_pickle(inert)[0])
    assert message.isprintable()
    assert len(message) < 1000


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_programs_are_refused_or_read_as_data(body: bytes) -> None:
    try:
        inert = read(b"\x80\x04" + body + b".")
    except BadCheckpointError:
        return
    read(to_pickle(inert)[0])
