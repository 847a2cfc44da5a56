"""megatron-core's word on torch_dist: it saves what flmgrow reads, and loads what flmgrow writes.

Loading is strict: every key megatron-core asks for must be there, and no other. What it got is
compared with the legacy checkpoint it all began with, bit for bit. megatron-core 0.19 cannot be
installed beside the one the tests use: its part is run if FLMGROW_MEGATRON_019 names a folder with
its wheel unpacked, as ``make test-slow`` sees to.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from growing import same_bits
from megatron_runs import torchrun, train_tiny
from repository import ROOT
from stage_runs import NEWER

from flmgrow.cli.app import run
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.model.axes import full_box

pytestmark = pytest.mark.slow  # megatron-core saves and loads in every test

LAYOUTS = {"1 1 1": 1, "2 2 1": 4, "2 2 2": 4}


def run_megatron(
    ranks: int, *arguments: str | Path, core: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run megatron-core, the one in folder ``core`` if given, and return how it ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "tests/support/megatron_dist.py", *map(str, arguments)]
    paths = os.pathsep.join([*filter(None, [core]), str(ROOT / "examples"), str(ROOT)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def megatron(ranks: int, *arguments: str | Path, core: str = "") -> None:
    done = run_megatron(ranks, *arguments, core=core)
    assert done.returncode == 0, done.stderr[-4000:]


def flmgrow(*arguments: str | Path) -> None:
    assert run([str(argument) for argument in arguments]) == 0


def assert_same_weights(a: Path, b: Path) -> None:
    with open_checkpoint(a) as one, open_checkpoint(b) as other:
        assert one.config == other.config
        for name, tensor in one.reader.tensors.items():
            box = full_box(tensor.shape(one.config.sizes))
            assert same_bits(one.reader.read(name, box), other.reader.read(name, box)), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained") / "small", tp=2, pp=2, steps=10)


def test_megatron_saves_and_flmgrow_reads(trained: Path, tmp_path: Path) -> None:
    megatron(4, "save", trained, tmp_path / "dist")
    assert_same_weights(trained, tmp_path / "dist")
    flmgrow("reshard", tmp_path / "dist", tmp_path / "back", "--tp", "1", "--format", "megatron")
    assert_same_weights(trained, tmp_path / "back")


def test_flmgrow_writes_and_megatron_loads_elsewhere(trained: Path, tmp_path: Path) -> None:
    flmgrow(
        "reshard", trained, tmp_path / "dist", "--tp", "4", "--pp", "1", "--format", "torch_dist"
    )
    megatron(4, "load", tmp_path / "dist", "2", "2", "1", tmp_path / "loaded")
    assert_same_weights(trained, tmp_path / "loaded")


def test_a_grown_checkpoint_is_loaded_and_computes_the_same(trained: Path, tmp_path: Path) -> None:
    sizes = ["--hidden-size", "96", "--num-layers", "8", "--ffn-hidden-size", "264"]
    options = ["--method", "zero", "--tp", "2", "--pp", "1", "--format", "torch_dist"]
    flmgrow("expand", trained, tmp_path / "grown", *sizes, *options)
    flmgrow("verify", trained, tmp_path / "grown")
    megatron(2, "load", tmp_path / "grown", "2", "1", "1", tmp_path / "loaded")
    assert_same_weights(tmp_path / "grown", tmp_path / "loaded")
    flmgrow("verify", trained, tmp_path / "loaded", "--skip-elements")


def assert_same_states(a: Path, b: Path) -> None:
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        one, other = with_optimizer(first), with_optimizer(second)
        assert one.optimizer is not None
        assert other.optimizer is not None
        assert one.optimizer.groups == other.optimizer.groups
        assert (one.optimizer.mixed_precision, one.optimizer.gradient_dtype) == (
            other.optimizer.mixed_precision,
            other.optimizer.gradient_dtype,
        )
        assert list(one.readers) == list(other.readers)
        for state, name in product(one.readers, one.reader.tensors):
            box = full_box(one.reader.tensors[name].shape(one.config.sizes))
            values = (x.readers[state].read(name, box) for x in (one, other))
            assert same_bits(*values), f"{state} of {name}"


KINDS = {
    "plain": "",
    "distributed": "--distributed-optimizer",
    "plain bf16": "--bf16",
    "distributed bf16": "--bf16 --distributed-optimizer",
}
"""The optimizers: all of a run on TP2 x PP2."""

ELSEWHERE = {"1 1 1": 1, "2 1 1": 4, "2 2 2": 4}
"""Layouts that megatron-core loads in, with the processes that do; the second is DP2."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the legacy checkpoint of a run with an optimizer of the given kind."""
    root = tmp_path_factory.mktemp("stopped")

    def train(kind: str) -> Path:
        if not (root / kind).exists():
            options = ["--tp", "2", "--pp", "2", "--steps", "2", "--optimizer"]
            torchrun(4, "train", root / kind, *options, *KINDS[kind].split())
        return root / kind

    return train


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_state_megatron_saves_is_read(
    stopped: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    megatron(4, "save-all", stopped(kind), tmp_path / "dist")
    assert_same_states(stopped(kind), tmp_path / "dist")
    layout = ["--tp", "1", "--pp", "2", "--format", "megatron"]
    flmgrow("reshard", tmp_path / "dist", tmp_path / "back", *layout)
    assert_same_states(stopped(kind), tmp_path / "back")
    flmgrow("verify", tmp_path / "dist", tmp_path / "back")


def assert_loads(source: Path, tmp_path: Path, layout: str) -> None:
    """Write it for TP1 x PP2, let megatron-core load that in ``layout``, and look what it got."""
    where = ["--tp", "1", "--pp", "2", "--format", "torch_dist"]
    flmgrow("reshard", source, tmp_path / "dist", *where)
    megatron(ELSEWHERE[layout], "load-all", tmp_path / "dist", *layout.split(), tmp_path / "loaded")
    assert_same_states(source, tmp_path / "loaded")


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.long) for kind in [*KINDS][1:])]
)
def test_optimizer_state_flmgrow_writes_is_loaded(
    stopped: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    assert_loads(stopped(kind), tmp_path, "2 2 2")


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["1 1 1", "2 1 1"])
@pytest.mark.parametrize("kind", ["plain bf16", "distributed"])
def test_optimizer_state_is_loaded_in_any_layout(
    stopped: Callable[[str], Path], tmp_path: Path, kind: str, layout: str
) -> None:
    assert_loads(stopped(kind), tmp_path, layout)


# Four processes each. Sizes of the odd model are no multiples of buffers' alignment.
BUCKETS = {
    "TP2 x PP2": "--tp 2 --pp 2",
    "odd, bf16, TP2 x PP2": "--tp 2 --pp 2 --arch odd --bf16 --bucket-size 10000",
    "untied, DP2 x TP2": "--tp 2 --arch gpt --bucket-size 30000",
    "odd, DP2 x PP2": "--pp 2 --arch odd --bucket-size 20000",
    "odd, bf16, DP2 x VPP2": "--pp 2 --vpp 2 --arch odd --bf16 --bucket-size 20000",
    "uneven, DP2 x PP2": "--pp 2 --pipeline-layers 1,3 --bf16",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", BUCKETS)
def test_buckets_megatron_saves_are_read(tmp_path: Path, kind: str) -> None:
    options = ["--steps", "2", "--optimizer", "--distributed-optimizer", *BUCKETS[kind].split()]
    torchrun(4, "train", tmp_path / "legacy", *options)
    megatron(4, "save-all", tmp_path / "legacy", tmp_path / "dist", "dp_reshardable")
    with open_checkpoint(tmp_path / "dist") as opened:
        assert isinstance(opened.contents, DistFolder)
        names = opened.contents.metadata.tensors
        assert not any(name.startswith("optimizer.state.") for name in names)
        assert any("bucket_idx_2" in name for name in names) == ("--bucket-size" in options)
    assert_same_states(tmp_path / "legacy", tmp_path / "dist")
    layout = ["--tp", "1", "--pp", "1", "--vpp", "1", "--format", "megatron"]
    flmgrow("reshard", tmp_path / "dist", tmp_path / "back", *layout)
    assert_same_states(tmp_path / "legacy", tmp_path / "back")
    flmgrow("verify", tmp_path / "dist", tmp_path / "back")


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_both_ways(trained: Path, tmp_path: Path, layout: str) -> None:
    tp, pp, vpp = layout.split()
    where = ["--tp", tp, "--pp", pp, "--vpp", vpp]
    flmgrow("reshard", trained, tmp_path / "legacy", *where)
    megatron(LAYOUTS[layout], "save", tmp_path / "legacy", tmp_path / "saved")
    assert_same_weights(trained, tmp_path / "saved")
    flmgrow("reshard", trained, tmp_path / "dist", *where, "--format", "torch_dist")
    megatron(LAYOUTS[layout], "load", tmp_path / "dist", tp, pp, vpp, tmp_path / "loaded")
    assert_same_weights(trained, tmp_path / "loaded")


needs_newer = pytest.mark.skipif(
    not NEWER, reason="FLMGROW_MEGATRON_019 does not name a folder with megatron-core 0.19 in it"
)


def folder_of(checkpoint: Path) -> Path:
    (folder,) = checkpoint.glob("iter_*")
    return folder


@pytest.mark.long
@needs_newer
@pytest.mark.parametrize("version", ["0.16", "0.19"])
@pytest.mark.parametrize("layout", ["1 1 1", "2 2 1"])
def test_0_19_loads_what_flmgrow_writes(
    trained: Path, tmp_path: Path, layout: str, version: str
) -> None:
    options = ["--tp", "4", "--pp", "1", "--format", "torch_dist", "--torch-dist-version", version]
    flmgrow("reshard", trained, tmp_path / "dist", *options)
    assert (folder_of(tmp_path / "dist") / "common.pt").exists() == (version == "0.16")
    megatron(
        LAYOUTS[layout], "load", tmp_path / "dist", *layout.split(), tmp_path / "out", core=NEWER
    )
    assert_same_weights(trained, tmp_path / "out")


@pytest.mark.long
@needs_newer
def test_0_19_saves_what_flmgrow_reads(tmp_path: Path) -> None:
    options = ["--tp", "2", "--pp", "2", "--steps", "2", "--optimizer"]
    torchrun(4, "train", tmp_path / "legacy", *options)
    megatron(4, "save-all", tmp_path / "legacy", tmp_path / "dist", core=NEWER)
    folder = folder_of(tmp_path / "dist")
    assert not (folder / "common.pt").exists()
    assert_same_states(tmp_path / "legacy", tmp_path / "dist")
    flmgrow("reshard", tmp_path / "dist", tmp_path / "back", "--tp", "1", "--format", "megatron")
    flmgrow("verify", tmp_path / "dist", tmp_path / "back")
    content = bytearray((folder / "metadata.json").read_bytes())
    content[-2] ^= 1  # nothing but integrity.json sees it
    (folder / "metadata.json").write_bytes(content)
    assert run(["verify", str(tmp_path / "dist"), str(tmp_path / "back")]) == 1


@pytest.mark.long
@needs_newer
def test_0_19_finds_damage_by_the_sums_flmgrow_wrote(trained: Path, tmp_path: Path) -> None:
    options = ["--tp", "1", "--pp", "1", "--format", "torch_dist", "--torch-dist-version", "0.19"]
    flmgrow("reshard", trained, tmp_path / "dist", *options)
    (shard,) = folder_of(tmp_path / "dist").glob("*.distcp")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    where: list[str | Path] = ["load", tmp_path / "dist", *"111", tmp_path / "loaded"]
    assert "integrity verification failed" in run_megatron(1, *where, core=NEWER).stderr


def test_a_wrong_weight_would_be_seen(trained: Path) -> None:
    with open_checkpoint(trained) as opened:
        box = full_box(opened.reader.shape("down"))
        values = opened.reader.read("down", box)
    other = values.copy()
    other[0, 0, 0] = np.nextafter(other[0, 0, 0], np.float32(9))
    assert not same_bits(values, other)
