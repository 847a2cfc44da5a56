"""The pickle of a folder's metadata runs nothing, imports nothing and fills no memory."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dcp_folders import Run, grid, random_tensor, refused, save

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.unpickler import load


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files: w in two chunks, b in one, and an object."""
    state = {"w": random_tensor((4, 6), torch.bfloat16), "b": torch.ones(3), "extra": [1, "a"]}
    return save(tmp_path_factory.mktemp("saved"), state, {"w": grid((4, 6), (2, 1))}, files=2)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("place", ["root", "planner_data", "key", "dtype"])
def test_nothing_is_run(folder: Path, protocol: int, place: str) -> None:
    canary = folder / "canary"
    path = folder / ".metadata"
    bomb = Run(os.system, f"touch {canary}")
    facts: Any = pickle.loads(path.read_bytes())
    if place == "root":
        facts = bomb
    elif place == "planner_data":
        facts.planner_data = {"a": bomb}
    elif place == "key":
        facts.state_dict_metadata[bomb] = 1
    else:
        facts.state_dict_metadata["b"].properties.dtype = bomb
    path.write_bytes(pickle.dumps(facts, protocol))
    refused(folder, "names posix.system, which no DCP metadata has; nothing was run")
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # it would have been
    assert canary.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch load", "torch _C", "os system", "collections OrderedDict"]
)
def test_names_are_not_imported(name: str) -> None:
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(BadCheckpointError, match=f"names {module}.{attribute}, which no DCP"):
        load(bytearray(b"\x80\x02" + data))


KIND = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
SIZE = b"ctorch\nSize\n"


@pytest.mark.parametrize(
    "program",
    [
        b".", b"N.", b"NN.", b"}.", b"0.", b"}2.", b"(.", b"u.", b"b.", b"R.", b"h\x05.", b"\x94.",
        b"N)R.", b")N\x81.", b"\x8c\xff.", b"X\xff\xff\xff\xff.", b"X\xff", b"\x8d" + b"\xff" * 8,
        b"\x8a\xff.", b"\x8b\xff\xff\xff\x7f.", b"r\xff\xff\xff\xffN.", b"Nr\xff\xff\xff\x00.",
        b"Nr\x00\x00\x01\x00.", b"\x95" + b"\xff" * 8 + b".", b"\x96" + b"\xff" * 8 + b".",
        b"B\xff\xff\xff\x7f.", b"Pname\n.", b"NQ.", b"\x82\x01.", b"i", b"\x97.", b"\x93.",
        KIND + b"N.", KIND + b".", KIND + b")R.", KIND + b"(NNtR.", KIND + b"(NNt\x81.",
        KIND + b"}b.", KIND + b"(N}tb.", KIND + b")\x81a.", KIND + b")\x81N" + b"a.",
        KIND + b")\x81)R.", KIND + b")\x81)\x81.", SIZE + b")R.", SIZE + b"NR.", SIZE + b"}b.",
        SIZE + b"(N}\x86b.", b"ctorch\nbfloat16\n)R.", b"ctorch\nbfloat16\n}b.", b"K\x01}b.",
        b"ctorch\n" + b"x" * 1000, b"ctorch\nbfloat16", b"]N}sb.", b"]](NN\x86e.", b"N.N.",
        KIND + b")\x81.", KIND + b")\x81Nb.", KIND + b")\x81)b.", KIND + b")\x81](K\x01eb.",
        KIND + b")\x81}(K\x01K\x02ub.", KIND + b")\x81}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNub.",
    ],
)  # fmt: skip
def test_broken_programs(program: bytes, folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04" + program)
    refused(folder, "")


def test_what_would_end_or_fill_the_process_does_not(folder: Path) -> None:
    """Nested so deep or so often that to hash it would overflow the stack or never end."""
    path = folder / ".metadata"
    deep = b")" + b"K\0K\0\x87" * 1_000_000
    wide = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(200))
    for tower in (deep, wide):
        for ending in (b"}" + tower + b"Ns.", b"}(" + tower + b"Nu.", b"]" + tower + b"a."):
            path.write_bytes(b"\x80\x02" + ending)
            refused(folder, "")
        path.write_bytes(b"\x80\x02" + KIND + b")\x81}(" + tower + b"Nub.")
        refused(folder, "metadata: found ")
    # A few bytes must not ask for many times as much memory.
    path.write_bytes(b"\x80\x02" + b"]" * 4_000_000 + b".")
    refused(folder, "found 4000000 containers in 4000003 bytes")
    path.write_bytes(b"\x80\x02" + b"(" * 4_000_000 + b".")
    refused(folder, "")


def test_no_torch_is_imported(saved: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from flmgrow.formats.dcp.metadata import read_metadata;"
        "from flmgrow.formats.dcp.items import DcpItems; import flmgrow.formats.dcp.writer;"
        "folder = Path(sys.argv[1]); found = read_metadata(folder);"
        "t = found.tensors['w']; DcpItems(folder).open_item('w', t.dtype, t.chunks[0]);"
        "print(sorted(sys.modules.keys() & {'torch', 'megatron'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
