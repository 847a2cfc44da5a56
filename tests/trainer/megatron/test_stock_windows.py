"""Windows, and layers that do not rotate: megatron-core 0.19's own model computes what is written.

The judge is its GPTModel, made of the arguments in a folder and of nothing else, before growth and
after, when layers have moved and an argument for every n-th layer says the wrong ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from growing import EXACT, tokens_for
from newer_megatron import answer_of
from pico import CONFIGS, make_checkpoint
from stage_runs import NEWER

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not NEWER, reason="FLMGROW_MEGATRON_019 names no folder with a wheel in it"),
]
STILL = replace(CONFIGS["tele"], positions="none")
TURNING = CONFIGS["llama"]
WINDOW = {"window_size": (4, 0)}
ROTATED = 1e-5
"""megatron-core turns by angles in float32."""

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all layers": (WINDOW, {"window_size": (4, 0), "window_attn_skip_freq": None}),
    "every second layer": (
        {**WINDOW, "window_attn_skip_freq": 2},
        {"window_attn_skip_freq": [1, 1, 0, 0, 1, 1, 0, 0]},
    ),
    "some layers": (
        {**WINDOW, "window_attn_skip_freq": [0, 1, 1, 0]},
        {"window_attn_skip_freq": [0, 0, 1, 1, 1, 1, 0, 0]},
    ),
}
TURNED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rotating and not": ({"no_rope_freq": 2}, {"no_rope_freq": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "both": (
        {**WINDOW, "window_attn_skip_freq": 2, "no_rope_freq": [0, 0, 0, 1]},
        {
            "window_attn_skip_freq": [1, 1, 0, 0, 1, 1, 0, 0],
            "no_rope_freq": [0, 0, 0, 0, 0, 0, 1, 1],
        },
    ),
}
GROWTH = (
    "--num-layers", 8, "--depth-placement", "interleave", "--hidden-size", 24, "--method", "copy",
)  # fmt: skip


def reference(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    with open_checkpoint(path) as opened:
        return logits(opened.config, CheckpointWeights(opened, torch.float64), tokens)


def as_tensor(told: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(told["logits"], dtype=torch.float64)


def arguments_in(path: Path) -> dict[str, Any]:
    (file,) = path.rglob("model_optim_rng.pt")
    arguments: dict[str, Any] = vars(torch.load(file, weights_only=False)["args"])
    return arguments


def test_its_own_model_computes_what_is_written(tmp_path: Path) -> None:
    """And one that keeps the small model's arguments, or has none of them, does not."""
    tokens = tokens_for(STILL.vocab, 12)
    assert TURNING.vocab == STILL.vocab
    cases = CASES | TURNED
    models: list[tuple[str, dict[str, Any]]] = []
    for name, (given, written) in cases.items():
        small, large = tmp_path / name / "small", tmp_path / name / "large"
        make_checkpoint(small, TURNING if name in TURNED else STILL, multiple=1, **given)
        accepted("expand", small, large, *GROWTH)
        accepted("verify", small, large)
        told = arguments_in(large)
        assert {n: told.get(n) for n in written} == written, name
        plain = dict.fromkeys(given, None)
        models += [(str(small), {}), (str(large), {}), (str(large), plain)]
        kept = {n: value for n, value in given.items() if isinstance(value, int)}
        models += [(str(large), kept)] if kept else []
    asked = {"tokens": tokens.tolist(), "models": models}
    found = iter(answer_of("stock_logits.py", asked))
    for name, (given, _) in cases.items():
        turned = ROTATED if name in TURNED else EXACT
        before, after = (as_tensor(next(found)) for _ in range(2))
        wrong = [next(found)]
        wrong += [next(found)] if any(isinstance(value, int) for value in given.values()) else []
        assert before.abs().max() > 0.1
        assert (after - before).abs().max() <= turned, name
        for size, computed in (("small", before), ("large", after)):
            apart = (reference(tmp_path / name / size, tokens) - computed).abs().max()
            assert apart <= turned, (name, size)
        for other in wrong:
            assert (as_tensor(other) - before).abs().max() > 1e-2, name
