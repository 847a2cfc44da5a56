"""A plan as lines for people and as data for programs: the same facts."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from flmgrow.model.axes import Axis, AxisMap
from flmgrow.model.wording import aligned, amount, model_text, size
from flmgrow.storage.strict_json import Json
from flmgrow.text import PYTHON, Words

if TYPE_CHECKING:
    from flmgrow.surgery.plan import GrowthPlan


def source_runs(axis_map: AxisMap) -> list[Json]:
    """Return runs of new indices: ``new`` [start, stop), and their ``old`` start or ``fresh``."""
    return [
        {"new": [run.start, run.stop], **({"old": run.old} if run.old >= 0 else {"fresh": True})}
        for run in axis_map.runs()
    ]


def _changes(plan: "GrowthPlan") -> list[tuple[str, str]]:
    rows = []
    for axis, axis_map in plan.growth.maps.items():
        before, after = axis_map.old_size, axis_map.new_size
        text = f"{before} -> {after}" if before != after else f"{before}, scaled"
        if axis is Axis.VOCAB:
            text += " (with padding)"
        rows.append((str(axis), text))
    return rows


def plan_lines(plan: "GrowthPlan", *more: tuple[str, str], words: Words = PYTHON) -> list[str]:
    """Return the plan as lines; ``more`` rows come after what is read and written."""
    source, target, total = plan.source, plan.target, plan.total
    old, new = plan.parameters
    averaged = total.near + total.mean
    rows = [
        ("source", f"{source.folder}  ({amount(old)} parameters, {source.dtype}, {source.layout})"),
        ("from", model_text(source.config)),
        ("to", f"{model_text(target.config)}"),
        ("result", f"{amount(new)} parameters, {target.dtype or source.dtype}, {target.layout}"),
        *_changes(plan),
        ("methods", ", ".join(f"{d}={m}" for d, m in plan.growth.methods.items()) or "none"),
        (
            "elements",
            f"{total.copied:,} from the source, {total.drawn:,} drawn, {total.zero:,} zero"
            + (f", {averaged:,} averaged" if averaged else ""),
        ),
        ("read", size(source.nbytes)),
        ("write", f"{size(plan.total_bytes)} in {len(plan.files)} files"),
        *more,
        *(("left out", str(item)) for item in plan.dropped),
        *(("note", note) for note in plan.growth.notes),
    ]
    return aligned(rows, words)


def plan_data(plan: "GrowthPlan", **more: object) -> Json:
    """Return the plan as data; ``more`` comes before what is left out."""
    old, new = plan.parameters
    return {
        "source": {
            "path": str(plan.source.folder),
            "parameters": old,
            "model": asdict(plan.source.config),
            "layout": asdict(plan.source.layout),
            "dtype": plan.source.dtype,
            "bytes": plan.source.nbytes,
        },
        "result": {
            "parameters": new,
            "model": asdict(plan.target.config),
            "layout": asdict(plan.target.layout),
            "dtype": plan.target.dtype or plan.source.dtype,
            "bytes": plan.total_bytes,
            "files": dict(plan.file_sizes),
        },
        "methods": {str(d): m for d, m in plan.growth.methods.items()},
        "axes": {str(axis): source_runs(m) for axis, m in plan.growth.maps.items()},
        "elements": {name: asdict(counts) for name, counts in plan.counts.items()},
        **more,
        "dropped": [str(item) for item in plan.dropped],
        "notes": list(plan.growth.notes),
    }
