"""What commands print: the same facts as lines for people and as data for programs."""

from collections.abc import Iterable, Sequence

from flmgrow.cli.printing import in_columns
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.model.tensors import logical_tensors, parameter_count
from flmgrow.model.wording import kind_text, model_text, size
from flmgrow.surgery.evidence.check import Check


def check_lines(checks: Iterable[Check]) -> list[str]:
    """Return each piece of evidence on a line."""
    return in_columns((f"{check.word:<9}  {check.name}", check.detail) for check in checks)


def model_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return what a checkpoint is, as name and value."""
    iteration = "release" if checkpoint.iteration is None else str(checkpoint.iteration)
    naming = ", Transformer Engine names" if checkpoint.fused else ", local names"
    kind = {
        "megatron": f"Megatron (torch){naming}",
        "torch_dist": f"Megatron (torch_dist){naming}",
        "fsdp_dtensor": f"Megatron (fsdp_dtensor){naming}",
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
    return in_columns(rows)
