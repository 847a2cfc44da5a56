"""megatron-core's own muP: its own optimizer goes on with what a growth has written.

megatron-core 0.19 makes param groups by its muP, looks for each of them in a checkpoint by its
settings, and gives parameters their states by the order of the groups. At muP's base width it makes
no group for hidden matrices. All that is between a growth and the next step of a stock run, so a
stock run is what takes it here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import accepted
from native_mup import (
    COPY,
    FLOOR,
    NEEDED,
    RATE,
    TIED,
    UNTIED,
    Settings,
    check_settings,
    followed,
    fresh,
    going_on,
    tensors,
    told_by_megatron,
)
from pico import make_checkpoint

from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import LogicalTensor

pytestmark = NEEDED
FORMS = {
    "megatron": False, "torch_dist": False, "megatron distributed": True,
    "torch_dist distributed": True,
}  # fmt: skip
"""How a run saves, and whether its optimizer is distributed."""
LAST = "torch_dist distributed"


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
REFUSED = {"lr": 1e-3, "min_lr": 1e-3, "mup_base_hidden_size": 16}
"""Arguments that are not the checkpoint's: megatron-core does not find its groups."""
SILENT = {"use_mup": False, "mup_output_mult": 1 / 3}
"""And such that it goes on with, as another model."""


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


def grown(source: Path, out: Path, width: int) -> Path:
    """Grow a checkpoint, whose param groups nothing is to be said of."""
    told = accepted("expand", source, out, "--hidden-size", width, *COPY).err
    assert "param groups" not in told
    accepted("verify", source, out)
    return out


def test_a_stock_run_goes_on_with_a_grown_optimizer(tmp_path: Path) -> None:
    """In either format, and with either optimizer, once and once more.

    Its own settings do not keep to the small run's losses; with those that the growth asks for, the
    states that it loaded do.
    """
    places = {name: tmp_path / name for name in CASES}
    jobs = [small_run(places[n], c, each) for n, c in CASES.items() for each in (False, True)]
    told_by_megatron(jobs)
    each_form = [(name, form) for name in CASES for form in FORMS]
    # On torch's AdamW it does not load the step count of its own buckets in torch_dist.
    legacy = [(name, form.replace("torch_dist", "megatron")) for name, form in each_form]
    smalls = told_by_megatron([going_on(places[n] / form / "small") for n, form in legacy])
    of: dict[str, dict[str, LogicalTensor]] = {}
    jobs = []
    for (name, form), before in zip(each_form, smalls, strict=True):
        case, place = CASES[name], places[name] / form
        large = grown(place / "small", place / "large", case.width)
        of[name] = of.get(name) or tensors(large)
        exact = followed(before["settings"], of[name], {Axis.HIDDEN: case.ratio})
        jobs += [going_on(large), going_on(large, settings=exact), fresh(large)]
    for name, case in CASES.items():
        place = places[name] / LAST
        wider = grown(place / "large", place / "wider", 2 * case.width)
        jobs += [going_on(wider), fresh(wider)]
        jobs += [going_on(place / "large", changes={k: v}) for k, v in (REFUSED | SILENT).items()]
    told = iter(told_by_megatron(jobs))
    large_settings: dict[str, Settings] = {}
    for (name, form), before in zip(each_form, smalls, strict=True):
        after, exact_run, made = (next(told) for _ in range(3))
        large_settings[name] = after["settings"]
        ratio = CASES[name].ratio
        check_settings(before["settings"], after["settings"], made["settings"], of[name], ratio)
        assert after["losses"][0] == pytest.approx(before["losses"][0], abs=1e-6)
        assert exact_run["losses"] == pytest.approx(before["losses"], abs=2e-6), (name, form)
        assert abs(after["losses"][-1] - before["losses"][-1]) > 1e-4, (name, form)
    for name, before in zip(CASES, smalls[len(FORMS) - 1 :: len(FORMS)], strict=True):
        further, made = next(told), next(told)
        check_settings(large_settings[name], further["settings"], made["settings"], of[name], 2)
        assert further["losses"][0] == pytest.approx(before["losses"][0], abs=1e-6)
        for key in REFUSED:
            assert "error" in next(told), (name, key)
        for key in SILENT:
            assert abs(next(told)["losses"][0] - before["losses"][0]) > 1e-3, (name, key)
