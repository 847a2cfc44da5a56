"""muP is a table of settings and starting values; whether it is the right one, widths must tell.

megatron-core runs in a process of its own (``mup_runs.py``). The coordinate check is the usual one:
after a few steps at one learning rate the logits of a wide model must have moved as far as those of
a narrow one, which without muP they do not.
"""

import json
import os
import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("mup_runs.py")
RATE, EPSILON, DECAY, SPREAD = 0.01, 1e-8, 0.1, 0.1
LAYERS = 2


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, **alone, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def kinds(found: dict[str, list[float]]) -> dict[str, list[list[float]]]:
    """Settings and spreads of a model's parameters by what they are."""
    by_kind: dict[str, list[list[float]]] = {}
    for name, values in found.items():
        if name.endswith(("linear_qkv.weight", "linear_fc1.weight")):
            kind = "inner"
        elif name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            kind = "outward"
        elif "q_layernorm" in name or "k_layernorm" in name:
            kind = "shared"
        else:
            kind = {"word_embeddings.weight": "embedding", "output_layer.weight": "head"}.get(
                ".".join(name.split(".")[-2:]), "vector"
            )
        by_kind.setdefault(kind, []).append(values)
    return by_kind


def settings(rate: float, epsilon: float, decay: float) -> list[float]:
    return [RATE * rate, RATE / 10 * rate, EPSILON * epsilon, DECAY * decay]


HIDDEN = settings(1 / 4, 1 / 4, 4)
EXPECTED = {
    ("tied", "embedding"): settings(1, 1 / 4, 1),
    ("tied", "inner"): HIDDEN,
    ("tied", "outward"): HIDDEN,
    ("tied", "vector"): settings(1, 1 / 4, 0),
    ("untied", "head"): settings(1, 1 / 4, 1),
    ("grown", "head"): settings(1 / 2, 1 / 2, 2),
    ("grown", "inner"): HIDDEN,
    ("qk norm", "shared"): settings(1, 1, 0),
    ("qk norm", "vector"): settings(1, 1 / 4, 0),
    ("base", "inner"): settings(1, 1, 1),
    ("base", "vector"): settings(1, 1, 0),
    ("base", "head"): settings(1, 1, 1),
}
SPREADS = {
    ("untied", "embedding"): SPREAD,
    ("untied", "head"): SPREAD,
    ("untied", "inner"): SPREAD / sqrt(4),
    ("untied", "outward"): SPREAD / sqrt(4 * 2 * LAYERS),
    ("base", "inner"): SPREAD,
    ("base", "outward"): SPREAD / sqrt(2 * LAYERS),
}


@pytest.mark.parametrize(("model", "kind"), EXPECTED)
def test_each_kind_has_its_settings(outcome: dict[str, Any], model: str, kind: str) -> None:
    found = kinds(outcome["settings"][model])[kind]
    for values in found:
        assert values[:4] == pytest.approx(EXPECTED[model, kind], rel=1e-12)


@pytest.mark.parametrize(("model", "kind"), SPREADS)
def test_each_kind_starts_with_its_spread(outcome: dict[str, Any], model: str, kind: str) -> None:
    for values in kinds(outcome["settings"][model])[kind]:
        assert values[4] == pytest.approx(SPREADS[model, kind], rel=0.05)


def test_logits_move_as_far_at_any_width(outcome: dict[str, Any]) -> None:
    assert max(outcome["with"]) < 1.6 * min(outcome["with"])


def test_without_mup_they_do_not(outcome: dict[str, Any]) -> None:
    narrow, *_, wide = outcome["without"]
    assert narrow == outcome["with"][0]
    assert wide > 4 * narrow
