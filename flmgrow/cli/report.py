"""What commands print: the same facts as lines for people and as data for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from flmgrow.errors import printable
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import Json
from flmgrow.model.axes import Axis
from flmgrow.model.tensors import logical_tensors, parameter_count
from flmgrow.model.wording import amount, kind_text, model_text
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.execute import Execution
from flmgrow.surgery.manifest import source_runs
from flmgrow.surgery.plan import Plan


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return ``name  value`` lines with the values in one column."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {printable(value)}".rstrip() for name, value in pairs]


def check_lines(checks: Iterable[Check]) -> list[str]:
    """Return each piece of evidence on a line."""
    return aligned((f"{check.word:<9}  {check.name}", check.detail) for check in checks)


def _changes(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for axis, axis_map in plan.growth.maps.items():
        before, after = axis_map.old_size, axis_map.new_size
        text = f"{before} -> {after}" if before != after else f"{before}, scaled"
        if axis is Axis.VOCAB:
            text += " (with padding)"
        rows.append((str(axis), text))
    return rows


def plan_lines(plan: Plan, execution: Execution) -> list[str]:
    """Return the plan as lines."""
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
        ("memory", f"at most {size(execution.max_memory)}, {execution.workers} workers"),
        *(("left out", item) for item in plan.dropped),
        *(("note", note) for note in plan.growth.notes),
    ]
    return aligned(rows)


def plan_data(plan: Plan, execution: Execution) -> Json:
    """Return the plan as data."""
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
        "memory": execution.max_memory,
        "workers": execution.workers,
        "dropped": list(plan.dropped),
        "notes": list(plan.growth.notes),
    }


def result_lines(plan: Plan, destination: Path, did: str = "wrote") -> list[str]:
    """Return what was written, or found written, as lines."""
    old, new = plan.parameters
    grown = (
        f"{amount(old)} -> {amount(new)} parameters" if old != new else f"{amount(new)} parameters"
    )
    rows = [
        (did, f"{destination}  ({size(plan.total_bytes)}, {len(plan.files)} files)"),
        ("model", f"{grown}: {model_text(plan.target.config)}"),
        ("layout", f"{plan.source.layout} -> {plan.target.layout}"),
    ]
    return aligned(rows)


def model_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return what a checkpoint is, as name and value."""
    iteration = "release" if checkpoint.iteration is None else str(checkpoint.iteration)
    naming = ", Transformer Engine names" if checkpoint.fused else ", local names"
    kind = {
        "megatron": f"Megatron (torch){naming}",
        "torch_dist": f"Megatron (torch_dist){naming}",
        "huggingface": "Hugging Face (safetensors)",
    }
    return [
        ("path", str(checkpoint.folder)),
        *(
            [("hub", f"{checkpoint.hub.repository} at {checkpoint.hub.commit}")]
            if checkpoint.hub
            else []
        ),
        ("format", kind[checkpoint.format]),
        *([("iteration", iteration)] if checkpoint.format != "huggingface" else []),
        ("model", model_text(checkpoint.config)),
        ("kind", kind_text(checkpoint.config)),
        ("parameters", f"{parameter_count(checkpoint.config):,}"),
        ("dtype", checkpoint.dtype),
        ("layout", str(checkpoint.layout)),
        (
            "vocabulary",
            f"{checkpoint.config.vocab}, stored {checkpoint.padded_vocab} with padding",
        ),
        ("files", f"{checkpoint.contents.count}, {size(checkpoint.nbytes)}"),
        ("also holds", ", ".join(checkpoint.carried.values()) or "nothing else"),
        *([("spoken to by", checkpoint.companions.text)] if checkpoint.companions.text else []),
    ]


def tensor_lines(checkpoint: Checkpoint) -> list[str]:
    """Return one line per logical tensor: name, axes with sizes, parameters."""
    rows: list[tuple[str, str]] = []
    for name, tensor in logical_tensors(checkpoint.config).items():
        shape = tensor.shape(checkpoint.stored_sizes)
        axes: Sequence[str] = [f"{a}={n}" for a, n in zip(tensor.axes, shape, strict=True)]
        rows.append((name, " ".join(axes)))
    return aligned(rows)
