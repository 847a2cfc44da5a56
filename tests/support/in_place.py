"""Pairs of stages of which the second grows out of the first, in memory and over the disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from commands import flmgrow
from stage_runs import metrics, saved, write_stage
from trained_here import small, trained

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "positions": "xpos",
}
WIDE = {"num_layers": 3, "hidden_size": 48, "num_attention_heads": 6}
MASK = {**WIDE, "method": "mask", "ramp_steps": 3, "seed": 3}
AT, STEPS = 4, 3
"""The steps of the small stage, and those of the large one."""

END = AT + STEPS


def stages(
    data: Path, folder: Path, growth: dict[str, Any], model: dict[str, Any] = SMALL, **changes: Any
) -> tuple[Path, Path]:
    """Write a small stage, and one that grows after it as ``growth`` says; return their files.

    ``changes`` are merged into the sections of both; of layout and training, the large one has its
    own, too.
    """
    layouts = (changes.pop("layout", {}), changes.pop("large_layout", {}))
    training = {"batch": 8, **changes.pop("training", {})}
    large_training = changes.pop("large_training", {})
    place = changes.pop("place", {})
    first = write_stage(
        folder / "small",
        small(
            data,
            name="small",
            model=model,
            training={"steps": AT, "seed": 5, **training},
            layout=layouts[0],
            **changes,
        ),
    )
    (folder / "growth.yaml").write_text(yaml.safe_dump(growth))
    second = small(
        data,
        name="large",
        model={},
        training={"steps": STEPS, "seed": 6, **training, **large_training},
        layout={**layouts[0], **layouts[1]},
        growth={"after": str(first), "to": str(folder / "growth.yaml"), **place},
        **changes,
    )
    return first, write_stage(folder / "large", second)


def between(first: Path, second: Path, folder: Path, run: Callable[[Path], str] = trained) -> Path:
    """Train the same stages with ``expand`` between them, in files; return that of the last."""
    shutil.copytree(first.parent, folder / "small", ignore=shutil.ignore_patterns("checkpoints"))
    run(folder / "small" / "stage.yaml")
    content = yaml.safe_load(second.read_text())
    growth = content.pop("growth")
    source, start = folder / "small" / "checkpoints", folder / "start"
    if (at := growth.get("at")) is not None:
        source /= f"iter_{at:07d}"
    counts = content["layout"].get("pipeline_layers")
    split = [] if counts is None else ["--pipeline-layers", ",".join(map(str, counts))]
    done = flmgrow("expand", source, start, "--to", growth["to"], *split)
    assert done.code == 0, done.err
    content["checkpoint"]["load"] = str(start)
    other = write_stage(folder / "large", content)
    run(other)
    return other


def history(stage: Path, iteration: int) -> dict[str, Any]:
    """Return what a checkpoint says of its past, but for days."""
    content: dict[str, Any] = json.loads(saved(stage, iteration)["flmgrow_training.json"])
    del content["files"], content["xxh3_128"]
    for member in content["family"]:
        member.pop("date", None)
    return content


def weights(stage: Path, iteration: int) -> dict[str, bytes]:
    """Return the files of a checkpoint that hold weights, states and sources of chance."""
    files = saved(stage, iteration)
    del files["flmgrow_training.json"]
    return files


def told_of(stage: Path) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each step."""
    return [(record["loss"], record["grad_norm"]) for record in metrics(stage)]


def assert_same(mine: Path, theirs: Path, end: int = END) -> None:
    """Insist on the same bits, the same past, and the same losses on the way."""
    assert weights(mine, end) == weights(theirs, end)
    assert history(mine, end) == history(theirs, end)
    assert told_of(mine) == told_of(theirs)
