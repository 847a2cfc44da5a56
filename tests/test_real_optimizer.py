"""An optimizer state is right if training goes on as if nothing had happened; Megatron decides.

megatron-core trains for six steps without a stop, and for three with one. flmgrow lays out the
stopped run's checkpoint for other ranks; megatron-core loads it there, weights strictly and states
by its own ``load_state_dict`` and ``load_parameter_state``, and takes the other three steps. Losses
and gradient norms of these steps are those of the run that never stopped. Norms tell a lost weight,
and the losses behind the first step a lost moment, as the controls show.

In float32 that holds to 2e-6. In bfloat16 another layout alone lets a run drift, and by how much
depends on the processor: so a run of the other layout that never stopped either is the measure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from megatron_runs import ALL, GROUPS, torchrun_batch

from flmgrow.cli.app import run

pytestmark = pytest.mark.slow  # the runs that all compare with take two minutes

STEPS, STOP = 6, 3
KINDS = {
    "plain": "",
    "plain bf16": "--bf16",
    "distributed": "--distributed-optimizer",
    "distributed bf16": "--distributed-optimizer --bf16",
    "odd": "--arch odd --distributed-optimizer",
}
"""The runs: all on TP2 x PP2. In the odd one, no size is a multiple of buffers' alignment."""
# The table's 300 rows are a multiple of 75 on up to four ranks. Megatron's loss counts the logits
# of padding, and where a layout has more or less of it, so has the loss.
LAYOUT = "--tp 2 --pp 2 --vocab-multiple 75".split()


@dataclass(frozen=True)
class Case:
    """A checkpoint made of that of a stopped run, and the number of processes that resume it."""

    source: str
    command: str
    ranks: int = 2


PIPELINE, TENSOR = "--tp 1 --pp 2", "--tp 2 --pp 1"
MOVED = {
    **{f"{kind}, TP1 x PP2": Case(kind, f"reshard {PIPELINE}") for kind in KINDS},
    "plain, TP2": Case("plain", f"reshard {TENSOR}"),
    "distributed, PP2 x VPP2": Case("distributed", f"reshard {PIPELINE} --vpp 2"),
}
MOVED_FAR = {
    "plain, TP4": Case("plain", "reshard --tp 4 --pp 1", 4),
    "distributed, TP4": Case("distributed", "reshard --tp 4 --pp 1", 4),
    "distributed, DP2": Case("distributed", f"reshard {PIPELINE}", 4),
    "odd, DP2": Case("odd", f"reshard {TENSOR}", 4),
    "odd, VPP2": Case("odd", "reshard --tp 2 --pp 2 --vpp 2", 4),
    "odd, back": Case("odd, VPP2", "reshard --tp 2 --pp 2 --vpp 1", 4),
    "distributed bf16, VPP2": Case("distributed bf16", "reshard --tp 2 --pp 2 --vpp 2", 4),
}
GROWN = {
    f"{kind}, {method}": Case(
        kind, f"expand {ALL} {GROUPS} --method {method} --copy-noise 0 {PIPELINE}"
    )
    for kind, method in (("plain", "zero"), ("distributed", "copy"), ("distributed bf16", "zero"))
}
# A growth that changes nothing but the moments.
CONTROLS = {
    f"{kind}, reset": Case(kind, f"expand --optimizer reset {PIPELINE} --num-layers 4")
    for kind in ("plain", "plain bf16")
}
EXACT = {"loss": 2e-6, "grad_norm": 2e-6}
"""By how much runs in float32 may differ, relatively."""
DRIFTS = 3
"""In bfloat16, by how many times the drift between two layouts."""
Log = list[dict[str, float]]


def of_kind(name: str) -> str:
    return name.partition(",")[0]


def read(log: Path) -> Log:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def log_of(root: Path, name: str) -> Path:
    return root / f"{name}.jsonl"


@pytest.fixture(scope="module")
def whole(root: Path) -> Mapping[str, Log]:
    """What the runs that never stopped report; those that did lie in ``root``, by kind."""
    commands = []
    for kind, options in KINDS.items():
        common = [*LAYOUT, "--steps", str(STEPS), *options.split()]
        log = ["--report", str(log_of(root, kind))]
        commands.append(["train", str(root / f"{kind}, whole"), *common, *log])
        stopped = ["--optimizer", "--stop", str(STOP)]
        commands.append(["train", str(root / kind), *common, *stopped])
    torchrun_batch(4, commands)
    return {kind: read(log_of(root, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def drift(root: Path, whole: Mapping[str, Log]) -> Mapping[str, float]:
    """How far, relatively, a bfloat16 run is from the same one in another layout."""
    log = log_of(root, "elsewhere")
    common = [*LAYOUT, "--tp", "1", "--steps", str(STEPS), "--bf16", "--report", str(log)]
    torchrun_batch(2, [["train", str(root / "elsewhere"), *common]])
    pairs = list(zip(read(log), whole["plain bf16"], strict=True))
    return {key: max(abs(a[key] / b[key] - 1) for a, b in pairs) for key in EXACT}


def tolerance(name: str, drift: Mapping[str, float]) -> Mapping[str, float]:
    if not of_kind(name).endswith("bf16"):
        return EXACT
    return {key: DRIFTS * value for key, value in drift.items()}


def resume(root: Path, cases: Mapping[str, Case]) -> Mapping[str, Log]:
    """Make checkpoints, let megatron-core go on from each, and return what it reports."""
    commands: dict[int, list[list[str]]] = {}
    for name, case in cases.items():
        command, *options = case.command.split()
        assert run([command, str(root / case.source), str(root / name), *options]) == 0, name
        given = ["--load", str(root / name), "--report", str(log_of(root, name))]
        arguments = ["train", str(root / f"{name}, resumed"), "--steps", str(STEPS), *given]
        commands.setdefault(case.ranks, []).append(arguments)
    for ranks, group in commands.items():
        torchrun_batch(ranks, group)
    return {name: read(log_of(root, name)) for name in cases}


@pytest.fixture(scope="module")
def resumed(root: Path, whole: Mapping[str, Log]) -> Mapping[str, Log]:
    assert whole
    return resume(root, {**MOVED, **GROWN, **CONTROLS})


@pytest.fixture(scope="module")
def resumed_far(root: Path, whole: Mapping[str, Log]) -> Mapping[str, Log]:
    assert whole
    return resume(root, MOVED_FAR)


def assert_same(log: Log, whole: Log, within: Mapping[str, float]) -> None:
    assert [line["step"] for line in log] == [*range(STOP + 1, STEPS + 1)]
    for found, wanted in zip(log, whole[STOP:], strict=True):
        for key, relative in within.items():
            assert found[key] == pytest.approx(wanted[key], rel=relative), (found["step"], key)


@pytest.mark.parametrize("name", MOVED)
def test_a_moved_run_goes_on(
    name: str, whole: Mapping[str, Log], resumed: Mapping[str, Log], drift: Mapping[str, float]
) -> None:
    assert_same(resumed[name], whole[of_kind(name)], tolerance(name, drift))


@pytest.mark.long
@pytest.mark.parametrize("name", MOVED_FAR)
def test_a_run_moved_far_goes_on(
    name: str, whole: Mapping[str, Log], resumed_far: Mapping[str, Log], drift: Mapping[str, float]
) -> None:
    assert_same(resumed_far[name], whole[of_kind(name)], tolerance(name, drift))


@pytest.mark.parametrize("name", GROWN)
def test_a_grown_run_goes_on(
    name: str, whole: Mapping[str, Log], resumed: Mapping[str, Log]
) -> None:
    log, before = resumed[name], whole[of_kind(name)]
    assert len(log) == STEPS - STOP
    close = 2e-3 if of_kind(name).endswith("bf16") else 1e-4
    assert log[0]["loss"] == pytest.approx(before[STOP]["loss"], abs=close)
    assert log[-1]["loss"] < before[STOP - 1]["loss"]


@pytest.mark.parametrize("name", CONTROLS)
def test_lost_moments_would_show(
    name: str, whole: Mapping[str, Log], resumed: Mapping[str, Log], drift: Mapping[str, float]
) -> None:
    first, second = (line["loss"] for line in resumed[name][:2])
    wanted, within = whole[of_kind(name)], tolerance(name, drift)["loss"]
    far = 20 if of_kind(name).endswith("bf16") else 100
    assert first == pytest.approx(wanted[STOP]["loss"], rel=within)
    assert second != pytest.approx(wanted[STOP + 1]["loss"], rel=far * within)
