"""Recognising and refusing quantized weights.

Quantized weights are codes for weights, and no arithmetic on them means anything. A folder says
that it is quantized in ``config.json`` (as transformers, older compressed-tensors or MLX have it),
or its tensors do: by dtypes that hold codes, and names that hold their scales.
"""

from collections.abc import Iterable, Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.fields.switch_rows import QUANTIZED
from flmgrow.formats.huggingface.safetensors_file import DTYPES, StoredTensor
from flmgrow.formats.vouched import Vouched
from flmgrow.text import Found, Setting, Text

_CODES = (
    ".qweight", ".qzeros", ".scales", ".weight_packed", ".weight_scale", ".weight_scale_inv",
    ".absmax", ".quant_map", ".g_idx", "_blocks", "_scales", ".biases",
)  # fmt: skip
"""What names end with that hold codes and their scales: GPTQ's, AWQ's, compressed-tensors', FP8's,
bitsandbytes', MXFP4's, MLX's.
"""

_WAY_OUT = (
    "give the model it was quantized from (its page names it), or let the program that quantized "
    "it write it out in bfloat16"
)


def _entry(fields: Mapping[str, object]) -> tuple[str, object] | None:
    return next(((row.name, row.get(fields)) for row in QUANTIZED if row.get(fields)), None)


def _method(value: object) -> str:
    named = value.get("quant_method") if isinstance(value, dict) else None
    return named if isinstance(named, str) else shown(value)


def refuse_quantized(
    where: str, fields: Mapping[str, object], tensors: Iterable[StoredTensor], vouched: Vouched
) -> None:
    """Raise BadCheckpointError for a folder of quantized weights.

    ``where`` is its ``config.json``, which ``fields`` are of. An entry there that the user vouches
    for is a left-over; codes are refused all the same.
    """
    entry = _entry(fields)
    told = Text(f"{entry[0]}: found ", Found(_method(entry[1])), ": ") if entry else ""
    for tensor in tensors:
        ends = any(tensor.name.endswith(ending) for ending in _CODES)
        if tensor.dtype not in DTYPES.values() and (ends or tensor.name.endswith(".weight")):
            raise BadCheckpointError(
                Text(told, f"{tensor.name}: dtype {tensor.dtype}: the weights are quantized"),
                _WAY_OUT,
                where=where,
            )
    if entry and not vouched.covers(entry[0]):
        raise BadCheckpointError(
            Text(told, "the weights are quantized, or will be when they are loaded"),
            Text(
                f"{_WAY_OUT}; if it was, and the entry is a left-over: ",
                Setting("ignore_fields", [entry[0]]),
            ),
            where=where,
        )
