"""megatron-core's own muP: its own optimizer goes on with what a growth has written.

megatron-core 0.19 makes param groups by its muP, looks for each of them in a checkpoint by its
settings, and gives parameters their states by the order of the groups. At muP's base width it makes
no group for hidden matrices. All that is between a growth and the next step of a stock run, so a
stock run is what takes it here.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commands import accepted
from pico import CONFIGS, make_checkpoint
from repository import ROOT
from stage_runs import NEWER

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import Axis, Role
from flmgrow.model.config import ModelConfig
from flmgrow.model.mup import Kind, kind_of
from flmgrow.model.tensors import LogicalTensor

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not NEWER, reason="FLMGROW_MEGATRON_019 names no folder with a wheel in it"),
]
Told = dict[str, Any]
Settings = dict[str, dict[str, float]]
COPY = ("--method", "copy", "--copy-noise", 0)
RATE, FLOOR = 3e-3, 3e-4
UNTIED = replace(CONFIGS["tele"], positions="none")
TIED = replace(CONFIGS["gpt"], positions="none", tied=True)
FORMS = {
    "megatron": False, "torch_dist": False, "megatron distributed": True,
    "torch_dist distributed": True,
}  # fmt: skip
"""How a run saves, and whether its optimizer is distributed."""


@dataclass(frozen=True)
class Case:
    """A model of width 12 with a base width, and the width it grows to."""

    model: ModelConfig
    base: int
    width: int = 24

    @property
    def ratio(self) -> float:
        return self.width / self.model.hidden


CASES = {
    "from the base": Case(UNTIED, 12),
    "from the base, three times, tied": Case(TIED, 12, 36),
    "to a still wider one": Case(TIED, 8),
    "onto the base": Case(UNTIED, 24),
}
REFUSED = {"lr": 1e-3, "min_lr": 1e-3, "mup_base_hidden_size": 16, "use_mup": False}
"""Arguments that are not the checkpoint's: megatron-core does not find its groups."""


def told_by_megatron(jobs: list[dict[str, Any]]) -> list[Told]:
    """Let megatron-core 0.19 do some training."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    paths = [NEWER, str(ROOT / "tests" / "support"), str(ROOT / "examples")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("native_mup_training.py"))],
        input=json.dumps(jobs), env={**os.environ, **alone, **own},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Told] = json.loads(done.stdout)
    return found


def small_run(place: Path, case: Case, distributed: bool) -> dict[str, Any]:
    """Return the job that trains a small model, and saves it in both formats."""
    start = make_checkpoint(
        place / f"start {distributed}", case.model, multiple=1,
        dtype="float32" if distributed else "float64", use_mup=True,
        mup_base_hidden_size=case.base, transformer_impl="local", lr=RATE, min_lr=FLOOR,
        use_distributed_optimizer=distributed,
    )  # fmt: skip
    forms = [form for form, wanted in FORMS.items() if wanted == distributed]
    save = {form.split()[0]: str(place / form / "small") for form in forms}
    return {"load": str(start), "optimizer": False, "steps": 5, "seed": 1, "save": save}


def going_on(folder: Path, **more: Any) -> dict[str, Any]:
    return {"load": str(folder), "optimizer": True, "steps": 4, "seed": 2, **more}


def tensors(folder: Path) -> dict[str, LogicalTensor]:
    """Return a logical tensor in each parameter, by its key in the legacy format."""
    with open_checkpoint(folder) as opened:
        arrays = opened.reader.arrays
        return {array.placement.key: array.placement.parts[0] for array in arrays}


def followed(settings: Settings, of: dict[str, LogicalTensor], ratio: float) -> Settings:
    """Return the settings with which a model whose hidden width alone grew keeps to the small one.

    A weight that reads the width, or carries the reader's scale, is so much smaller, and moves by
    so much less; the gradient of any other that has this axis is so much smaller.
    """
    found = {}
    for name, own in settings.items():
        roles = dict(zip(of[name].axes, of[name].roles, strict=True)).get(Axis.HIDDEN, frozenset())
        rate = 1 / ratio if roles & {Role.READS, Role.CARRIES} else 1.0
        epsilon = 1 / ratio if roles and rate == 1 else 1.0
        found[name] = {
            "max_lr": own["max_lr"] * rate, "min_lr": own["min_lr"] * rate, "lr": own["lr"] * rate,
            "eps": own["eps"] * epsilon, "wd_mult": own["wd_mult"] / rate,
            "weight_decay": own["weight_decay"] / rate,
        }  # fmt: skip
    return found


def check_settings(
    small: Settings, large: Settings, fresh: Settings, of: dict[str, LogicalTensor]
) -> None:
    """What was loaded is what megatron-core makes for the width; only hidden matrices move."""
    for name, own in large.items():
        for key in ("max_lr", "min_lr", "eps", "wd_mult"):
            assert own[key] == fresh[name][key], (name, key)
        assert own["weight_decay"] == small[name]["weight_decay"]
        moved = own["eps"] / small[name]["eps"]
        assert own["lr"] / small[name]["lr"] == pytest.approx(moved, rel=1e-12)
        assert own["max_lr"] / small[name]["max_lr"] == pytest.approx(moved, rel=1e-12)
        assert (moved != 1) == (kind_of(of[name]) is Kind.HIDDEN), name


@pytest.mark.parametrize("name", CASES)
def test_a_stock_run_goes_on_with_a_grown_optimizer(name: str, tmp_path: Path) -> None:
    """In either format, and with either optimizer.

    Its own settings do not keep to the small run's losses; with the trainer's, which move weight
    decay and what carries the head as well, the states that it loaded do.
    """
    case = CASES[name]
    told_by_megatron([small_run(tmp_path, case, each) for each in (False, True)])
    smalls = told_by_megatron([going_on(tmp_path / form / "small") for form in FORMS])
    jobs: list[dict[str, Any]] = []
    of: dict[str, LogicalTensor] = {}
    for form, before in zip(FORMS, smalls, strict=True):
        small, large = tmp_path / form / "small", tmp_path / form / "large"
        words = ("--hidden-size", case.width, *COPY)
        assert "param groups" not in accepted("expand", small, large, *words).err
        accepted("verify", small, large)
        of = of or tensors(large)
        exact = followed(before["settings"], of, case.ratio)
        jobs += [going_on(large), going_on(large, settings=exact)]
        jobs += [{**going_on(large), "optimizer": False, "steps": 0}]
        wider = tmp_path / form / "wider"
        accepted("expand", large, wider, "--hidden-size", 2 * case.width, *COPY)
        jobs += [going_on(wider), {**going_on(wider), "optimizer": False, "steps": 0}]
    jobs += [going_on(large, changes={key: value}) for key, value in REFUSED.items()]
    told = iter(told_by_megatron(jobs))
    for form, before in zip(FORMS, smalls, strict=True):
        after, exact, fresh, further, fresh_further = (next(told) for _ in range(5))
        check_settings(before["settings"], after["settings"], fresh["settings"], of)
        check_settings(after["settings"], further["settings"], fresh_further["settings"], of)
        assert after["losses"][0] == pytest.approx(before["losses"][0], abs=1e-6)
        assert exact["losses"] == pytest.approx(before["losses"], abs=2e-6), form
        assert abs(after["losses"][-1] - before["losses"][-1]) > 1e-3, form
    for key in REFUSED:
        assert "error" in next(told), key
