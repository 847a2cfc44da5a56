"""A masked model must compute what the reference forward says, and the same in every layout.

Tiny checkpoints of several architectures are grown by flmgrow in all four dimensions at once, with
masks, and laid out for each layout. megatron-core loads them (``masked_runs.py``). Its logits are
compared with the reference forward of the grown model at the masks' values, and at 0 with that of
the ungrown one; losses and gradient norms of three steps, in each layout, with those on one rank.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import checkpoint_logits, grow_checkpoint, tokens_for
from pico import CONFIGS, make_checkpoint, stored_weights
from sampling import first
from torch import Tensor

from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.model.forward import logits as reference_logits
from flmgrow.model.masks import Dimension
from flmgrow.operators.target import Target
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.weights import CheckpointWeights, unit_masks

SCRIPT = Path(__file__).with_name("masked_runs.py")
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
SIX_DIGITS = 1e-6
NEAR = 0.15
"""What bfloat16 may differ by: three times the rounding of the ungrown or the unmasked models."""

Values = Mapping[str, float]


def together(value: float) -> dict[str, float]:
    """All masks at one value."""
    return dict.fromkeys(map(str, Dimension), value)


VALUES: dict[str, dict[str, float]] = {
    **{str(value): together(value) for value in (0.0, 0.37, 1.0)},
    **{f"{one} alone": {**together(0.0), str(one): 0.37} for one in Dimension},
    "in turn": {"ffn": 1.0, "depth": 1.0, "width": 0.37, "heads": 0.0},
}
VOCAB = 64
# A size that no tensor parallelism pads: the loss looks at padded rows too.
MODELS = {name: replace(CONFIGS[name], vocab=VOCAB) for name in ("flm", "llama", "qk", "gpt")}
MODELS["granite"] = replace(  # every branch has a multiplier beside its mask
    MODELS["llama"], multipliers=Multipliers(embedding=2.5, output=1.7, attention=0.2, residual=0.4)
)
TABLES = ("embedding", "position_embedding", "head")
GROWN: Mapping[str, Target] = {
    "flm": Target(layers=8, hidden=16, ffn=28, heads=8),
    "llama": Target(layers=8, hidden=16, ffn=28, heads=24, kv_groups=8),
    "qk": Target(layers=6, hidden=18, ffn=24, heads=6, kv_groups=6),
    "gpt": Target(layers=6, hidden=16, ffn=28, heads=6),
    "granite": Target(layers=8, hidden=16, ffn=28, heads=24, kv_groups=8),
}


def calm_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Halve the matrices of the usual tiny model, whose gradients magnify float32's rounding."""
    return {
        name: values if "." in name or name in TABLES else values / 2
        for name, values in stored_weights(config).items()
    }


@dataclass(frozen=True)
class Layout:
    """How many ranks there are, and what each of them holds."""

    ranks: int
    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    sp: bool = False


ALONE = Layout(1)
LAYOUTS: Mapping[str, Layout] = {
    "alone": ALONE,
    "tp2": Layout(2, tp=2),
    "sp": Layout(2, tp=2, sp=True),
    "pp2": Layout(2, pp=2),
    "vpp2": Layout(2, pp=2, vpp=2),
    "dp2": Layout(2),
    "tp2 pp2": Layout(4, tp=2, pp=2),
    "tp2 pp2 vpp2 sp": Layout(4, tp=2, pp=2, vpp=2, sp=True),
}
STEPPED = ("flm", "llama")
"""The architectures that also train, each in all layouts."""


@dataclass(frozen=True)
class Job:
    """What ``masked_runs.py`` shall compute."""

    arch: str
    layout: Layout
    dtype: str
    values: tuple[str, ...]
    steps: int = 0
    fault: str = "none"

    @property
    def start(self) -> tuple[int, str]:
        """Which jobs run together, as starting takes longer than most jobs."""
        return (self.layout.ranks, self.arch if self.layout.ranks > 1 else "")


class Bench:
    """Makes the checkpoints that jobs need, and runs jobs: each only once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[Job, dict[str, Any]] = {}

    def source(self, arch: str) -> Path:
        """The ungrown checkpoint."""
        path = self.folder / arch
        weights = calm_weights(MODELS[arch])
        return path if path.exists() else make_checkpoint(path, MODELS[arch], weights=weights)

    def grown(self, arch: str, layout: Layout = ALONE) -> Path:
        """The grown one, with masks at 0."""
        path = self.folder / f"{arch} grown {layout.tp} {layout.pp} {layout.vpp}"
        if not path.exists():
            request = LayoutRequest(tp=layout.tp, pp=layout.pp, vpp=layout.vpp)
            grow_checkpoint(self.source(arch), path, GROWN[arch], request)
        return path

    def run(self, wanted: Job) -> dict[str, Any]:
        """Return the results of a job by the names of its values."""
        if wanted not in self.results:
            self._start([job for job in JOBS if job.start == wanted.start])
        return self.results[wanted]

    def _start(self, jobs: list[Job]) -> None:
        ranks = jobs[0].layout.ranks
        request = {
            "tokens": tokens_for(VOCAB).tolist(),
            "jobs": [
                {
                    **asdict(job.layout),
                    "checkpoint": str(self.grown(job.arch, job.layout)),
                    "dtype": job.dtype,
                    "values": [VALUES[name] for name in job.values],
                    "steps": job.steps,
                    "fault": job.fault,
                }
                for job in jobs
            ],
        }
        asked, answer = self.folder / "jobs.json", self.folder / "results.pt"
        asked.write_text(json.dumps(request))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launch, f"--nproc-per-node={ranks}", str(SCRIPT), str(asked), str(answer)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        for job, kept in zip(jobs, torch.load(answer, weights_only=True), strict=True):
            self.results[job] = dict(zip(job.values, kept, strict=True))

    def reference(self, arch: str, values: Values) -> Tensor:
        """The float64 logits of the reference forward with masks at ``values``."""
        with open_checkpoint(self.grown(arch)) as opened, torch.no_grad():
            moved = {one: mask.at(values[one]) for one, mask in masks_of(opened).items()}
            weights = CheckpointWeights(opened, torch.float64)
            units = unit_masks(moved, opened, torch.float64)
            return reference_logits(opened.config, weights, tokens_for(VOCAB), units)


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    assert expected.abs().max() > 0.5
    return (logits - expected).abs().max().item()


def digits(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


EXACTLY = {
    (arch, dtype): Job(arch, ALONE, dtype, tuple(VALUES)) for arch in GROWN for dtype in TOLERANCE
}
HALF = {arch: Job(arch, ALONE, "bfloat16", tuple(VALUES)) for arch in GROWN}
TOGETHER = ("0.0", "0.37", "1.0")
STEPS = {
    (arch, name): Job(arch, layout, "float32", TOGETHER, steps=3)
    for arch in STEPPED
    for name, layout in LAYOUTS.items()
}
LAID_OUT = {
    (arch, name): Job(arch, layout, "float64", TOGETHER)
    for arch in STEPPED
    for name, layout in LAYOUTS.items()
    if name != "alone"
}
FAULTS = {
    "plain norms": Job("flm", ALONE, "float32", ("0.37",), 3, "plain norms"),
    "multiplier of masked branches left out": Job(
        "granite", ALONE, "float32", ("0.37",), 3, "multiplier of masked branches left out"
    ),
    "xpos left out": Job("flm", ALONE, "float32", ("0.37",), 3, "xpos left out"),
    "first part on every rank": Job(
        "flm", LAYOUTS["tp2"], "float32", ("0.37",), 3, "first part on every rank"
    ),
    "layers counted from the stage": Job(
        "flm", LAYOUTS["pp2"], "float32", ("0.37",), 3, "layers counted from the stage"
    ),
    "gradients of norms not summed": Job(
        "flm", LAYOUTS["sp"], "float32", ("0.37",), 3, "gradients of norms not summed"
    ),
}
STEPS["granite", "alone"] = Job("granite", ALONE, "float32", TOGETHER, steps=3)
JOBS = tuple(job for jobs in (EXACTLY, HALF, STEPS, LAID_OUT, FAULTS) for job in jobs.values())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("masked"))


def check_logits(bench: Bench, job: Job) -> None:
    """Compare with the reference forward, and with the ungrown model where masks are at 0."""
    with torch.no_grad():
        ungrown = checkpoint_logits(bench.source(job.arch), tokens_for(VOCAB))
    results = bench.run(job)
    for name, result in results.items():
        expected = bench.reference(job.arch, VALUES[name])
        assert difference(result["logits"], expected) < TOLERANCE[job.dtype], name
    assert difference(results["0.0"]["logits"], ungrown) < TOLERANCE[job.dtype]
    assert difference(results["1.0"]["logits"], ungrown) > 0.1


def check_stock(bench: Bench, job: Job) -> None:
    """Look at a model whose masks have come to 1, and at one built with masks at 1."""
    result = bench.run(job)["1.0"]
    stock, plain, live = result["stock"]
    if job.arch != "flm":  # which has xPos, and no stock model has that
        assert plain["modules"] == stock["modules"]
    assert plain["keys"] == live["keys"] == stock["keys"]
    assert plain["sharded"] == live["sharded"] == stock["sharded"]
    assert live["modules"] != stock["modules"]
    assert torch.equal(result["logits"], result["unmasked logits"])


def check_layout(bench: Bench, arch: str, name: str) -> None:
    """Compare a layout with one rank, and both with the reference forward."""
    steps, alone = STEPS[arch, name], bench.run(STEPS[arch, "alone"])
    for job in (steps, LAID_OUT[arch, name]):
        check_logits(bench, job)
    check_stock(bench, LAID_OUT[arch, name])
    for value, result in bench.run(steps).items():
        for kind in ("losses", "norms"):
            assert digits(result[kind], alone[value][kind]) < SIX_DIGITS, (kind, value)


@pytest.mark.parametrize(("arch", "dtype"), first(1, EXACTLY))
def test_logits_are_the_references_and_at_0_the_ungrown_models(
    bench: Bench, arch: str, dtype: str
) -> None:
    check_logits(bench, EXACTLY[arch, dtype])


@pytest.mark.parametrize("arch", GROWN)
def test_bfloat16_stays_bfloat16_and_near(bench: Bench, arch: str) -> None:
    for name, result in bench.run(HALF[arch]).items():
        assert result["logits"].dtype == torch.bfloat16
        assert difference(result["logits"], bench.reference(arch, VALUES[name])) < NEAR, name


@pytest.mark.parametrize(("arch", "dtype"), EXACTLY)
def test_masked_to_1_it_is_the_stock_model(bench: Bench, arch: str, dtype: str) -> None:
    check_stock(bench, EXACTLY[arch, dtype])


def layouts(ranks: int) -> list[str]:
    return [name for name, layout in LAYOUTS.items() if layout.ranks == ranks]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", layouts(2))
def test_two_ranks_train_as_one(bench: Bench, name: str) -> None:
    check_layout(bench, "flm", name)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", layouts(2))
def test_two_ranks_train_as_one_with_grouped_queries(bench: Bench, name: str) -> None:
    check_layout(bench, "llama", name)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", layouts(4))
@pytest.mark.parametrize("arch", STEPPED)
def test_four_ranks_train_as_one(bench: Bench, arch: str, name: str) -> None:
    check_layout(bench, arch, name)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(bench: Bench, fault: str) -> None:
    job = FAULTS[fault]
    right = bench.run(STEPS[job.arch, "alone"])["0.37"]
    wrong = bench.run(job)["0.37"]
    assert digits(wrong["norms"], right["norms"]) > 1000 * SIX_DIGITS
