"""megatron-core's own muP, and what else may grow: the FFN, heads, layers; on ranks, in 16 bits.

Groups are those of the width alone, so they stay where it does; but every growth gives groups
other parameters, in another order, and on ranks each rank has its own.
"""

from dataclasses import replace
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
    check_settings,
    followed,
    fresh,
    going_on,
    tensors,
    told_by_megatron,
)
from pico import even, make_checkpoint

from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig

pytestmark = NEEDED
MODELS: dict[str, tuple[ModelConfig, int]] = {
    "at the base": (UNTIED, 12),
    "wider": (UNTIED, 8),
    "wider, tied": (TIED, 8),
}
"""Models of width 12, and their base widths."""
GROWTHS: dict[str, tuple[dict[Axis, int], tuple[Any, ...]]] = {
    "ffn": ({Axis.FFN: 2}, ("--ffn-hidden-size", 40)),
    "heads": ({Axis.KV_GROUP: 2}, ("--num-attention-heads", 8)),
    "all widths": (
        {Axis.HIDDEN: 2, Axis.FFN: 2, Axis.KV_GROUP: 2},
        ("--hidden-size", 24, "--ffn-hidden-size", 40, "--num-attention-heads", 8),
    ),
    "depth": ({}, ("--num-layers", 6)),
    "all": (
        {Axis.HIDDEN: 2},
        ("--hidden-size", 24, "--ffn-hidden-size", 40, "--num-attention-heads", 8,
         "--num-layers", 6),
    ),
}  # fmt: skip
"""By how much axes grow, and the words for it. New layers train, so that with them no settings keep
to the small model."""
FORMS = ("megatron", "torch_dist")


def small_run(
    place: Path, model: ModelConfig, base: int, dtype: str = "float32", **how: Any
) -> dict[str, Any]:
    """Return the job that trains a small model, and saves it in both formats."""
    start = make_checkpoint(
        place / "start", model, dtype=dtype, multiple=1, use_mup=True, mup_base_hidden_size=base,
        transformer_impl="local", lr=RATE, min_lr=FLOOR, use_distributed_optimizer=True, **how,
    )  # fmt: skip
    save = {form: str(place / "small" / form) for form in FORMS}
    return {"load": str(start), "optimizer": False, "steps": 5, "seed": 1, "save": save}


def grown(source: Path, out: Path, *words: Any) -> Path:
    """Grow a checkpoint, whose param groups nothing is to be said of."""
    told = accepted("expand", source, out, *words, *COPY).err
    assert "param groups" not in told
    accepted("verify", source, out)
    return out


def test_a_stock_run_goes_on_with_whatever_grew(tmp_path: Path) -> None:
    """With settings that follow what grew, it keeps to the small run's losses: so every state is
    its own parameter's.
    """
    places = {name: tmp_path / name for name in MODELS}
    told_by_megatron([small_run(places[n], *model) for n, model in MODELS.items()])
    smalls = told_by_megatron([going_on(places[name] / "small" / "megatron") for name in MODELS])
    kinds = {name: tensors(places[name] / "small" / "megatron") for name in MODELS}
    jobs: list[dict[str, Any]] = []
    for name, before in zip(MODELS, smalls, strict=True):
        for number, (growth, (ratios, words)) in enumerate(GROWTHS.items()):
            place = places[name] / growth
            large = grown(places[name] / "small" / FORMS[number % 2], place, *words)
            exact = followed(before["settings"], kinds[name], ratios)
            follows = {} if "--num-layers" in words else {"settings": exact}
            jobs += [going_on(large), going_on(large, **follows), fresh(large)]
    told = iter(told_by_megatron(jobs))
    for name, before in zip(MODELS, smalls, strict=True):
        for growth, (ratios, words) in GROWTHS.items():
            after, exact_run, made = (next(told) for _ in range(3))
            of, ratio = kinds[name], ratios.get(Axis.HIDDEN, 1)
            check_settings(before["settings"], after["settings"], made["settings"], of, ratio)
            assert after["losses"][0] == pytest.approx(before["losses"][0], abs=1e-6)
            if "--num-layers" not in words:
                assert exact_run["losses"] == pytest.approx(before["losses"], abs=2e-6)
                assert abs(after["losses"][-1] - before["losses"][-1]) > 1e-4, (name, growth)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_ranks_of_a_stock_run_go_on_with_their_parts(tmp_path: Path, tp: int, pp: int) -> None:
    """Trained on ranks and grown there, and trained on one rank and grown onto several."""
    layout, words = ("--tp", tp, "--pp", pp), GROWTHS["all"][1]
    model = replace(UNTIED, vocab=52)  # which is padded on no rank, so that tokens are the same
    told_by_megatron([small_run(tmp_path / "ranks", model, 8, layout=even(model, tp, pp))], tp, pp)
    told_by_megatron([small_run(tmp_path / "one", model, 8)])
    larges = [
        grown(
            tmp_path / where / "small" / form, tmp_path / where / f"large {form}", *words, *layout
        )
        for where in ("ranks", "one")
        for form in FORMS
    ]
    jobs = [job for large in larges for job in (going_on(large), fresh(large))]
    small = tmp_path / "ranks" / "small" / "megatron"
    before, *told = told_by_megatron([going_on(small), *jobs], tp, pp)
    of = tensors(tmp_path / "one" / "small" / "megatron")
    for after, made in zip(told[::2], told[1::2], strict=True):
        check_settings(before["settings"], after["settings"], made["settings"], of, 2)
        assert len(after["losses"]) == 4
        assert after["losses"][0] == pytest.approx(before["losses"][0], abs=1e-5)
        assert after["losses"] == pytest.approx(told[0]["losses"], abs=1e-4)


def test_masters_beside_bfloat16_are_grown(tmp_path: Path) -> None:
    """Whose settings are the same; what weights compute is rounded."""
    told_by_megatron([small_run(tmp_path, UNTIED, 8, dtype="bfloat16")])
    larges = [
        grown(tmp_path / "small" / form, tmp_path / f"large {form}", *GROWTHS["all"][1])
        for form in FORMS
    ]
    jobs = [job for large in larges for job in (going_on(large), fresh(large))]
    before, *told = told_by_megatron([going_on(tmp_path / "small" / "megatron"), *jobs])
    of = tensors(larges[0])
    for after, made in zip(told[::2], told[1::2], strict=True):
        check_settings(before["settings"], after["settings"], made["settings"], of, 2)
        assert after["losses"][0] == pytest.approx(before["losses"][0], abs=0.02)
        assert after["losses"] == told[0]["losses"]
