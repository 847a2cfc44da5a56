"""What flmgrow does not read, known for what it is: a name, and the way from it to something read.

Formats show in the files that a folder holds, models in the names of their parameters. Neither may
be taken for damage, and no hint may lead to a model that computes something else.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.text import Setting, Text


@dataclass(frozen=True)
class Unsupported:
    """Something that is not read: ``what`` it is, for a message, and the ``way`` from it."""

    what: str
    way: str

    def refusal(self, where: str) -> BadCheckpointError:
        """Return the refusal of what was found at ``where``."""
        return BadCheckpointError(
            f"{self.what}, which flmgrow does not read", self.way, where=where
        )


_CONVERT = (
    "convert it with Megatron-LM's tools/checkpoint/convert.py --model-type GPT --loader legacy "
    "--saver core (in older versions --loader megatron --saver mcore)"
)
_DENSE = "there is no way around it: flmgrow knows dense decoders alone"

_PARTS: Mapping[str, Unsupported] = {
    r"language_model(\..*)?": Unsupported(
        "a model from before megatron-core (language_model.encoder...)", _CONVERT
    ),
    r"mtp\..*": Unsupported(
        "layers for multi-token prediction",
        "the model itself does not need them: load it with Megatron-LM without --mtp-num-layers "
        "and without --use-checkpoint-args, and save it again",
    ),
    r".*\.(router|experts|local_experts|shared_experts)\..*": Unsupported(
        "a mixture of experts", _DENSE
    ),
    r".*\.linear_(q|kv|qkv)_(down|up)_proj\..*": Unsupported("multi-head latent attention", _DENSE),
    r".*\.mixer\..*|.*\.self_attention\.(in_proj|conv1d|A_log|dt_bias).*": Unsupported(
        "state-space or linear-attention layers", _DENSE
    ),
    r".*(_quantizer|_amax\b|\b_scale\b).*": Unsupported(
        "a quantized model", "save it before it is quantized, and quantize what comes out"
    ),
    r".*\.(lora_[AB]|adapter|linear_in|linear_out)\b.*": Unsupported(
        "adapters beside the weights", "merge them into the weights, with what trained them"
    ),
    r".*\.(cross_attention|inter_attention)\..*|encoder\..*": Unsupported(
        "a model with an encoder", _DENSE
    ),
    r"(binary_head|lm_head|pooler)\..*": Unsupported("BERT, or another encoder", _DENSE),
    r"(vision_model|vision_projection|image_encoder)\..*": Unsupported(
        "a model of images", "flmgrow knows language models alone"
    ),
    r"module\..*": Unsupported(
        "a checkpoint of NeMo or Megatron-FSDP (names begin with module.)",
        "export it to the Hugging Face format with what wrote it, and use flmgrow import",
    ),
}
"""By the names of parameters, without a model chunk's or an optimizer's prefix."""

_PART = re.compile("|".join(f"(?P<p{n}>{text})" for n, text in enumerate(_PARTS)), re.DOTALL)


def part_named(key: str) -> Unsupported | None:
    """Return what a parameter's key shows to be in the model, None if that is nothing known."""
    match = _PART.fullmatch(key)
    return None if match is None else list(_PARTS.values())[int((match.lastgroup or "p0")[1:])]


def refuse_parts(keys: Iterable[object], where: str) -> None:
    """Raise BadCheckpointError if one of ``keys``, found at ``where``, is of such a part."""
    for key in keys:
        if isinstance(key, str) and (part := part_named(key)):
            raise part.refusal(f"{where}: {key}")


# --- formats

BACKENDS: Mapping[str, Unsupported] = {
    "zarr": Unsupported(
        "a distributed checkpoint in zarr",
        "load it with Megatron-LM on megatron-core 0.8 to 0.15 and --ckpt-convert-format "
        "torch_dist --ckpt-convert-save DIR",
    ),
    "fsdp_dtensor": Unsupported(
        "a checkpoint of Megatron-FSDP (--ckpt-format fsdp_dtensor) under other names than its own",
        "convert it with Megatron-LM's tools/checkpoint/checkpoint_inspector.py "
        "convert-fsdp-dtensor-to-torch-dist IN OUT",
    ),
    "torch_dcp": Unsupported(
        "a checkpoint of torch's FSDP (--ckpt-format torch_dcp)",
        Text(
            "convert it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch IN "
            "OUT/iter_NNNNNNN/mp_rank_00/model_optim_rng.pt, and go on from OUT/iter_NNNNNNN with ",
            Setting("no_optimizer", True),
        ),
    ),
}
"""Formats of Megatron-LM, as ``--ckpt-format`` or ``sharded_backend`` in ``metadata.json``."""

BY_RANK = Unsupported(
    "a checkpoint of Megatron-LM of 2022 (model_rng.pt, and optim.pt for each data-parallel rank)",
    "rename each model_rng.pt to model_optim_rng.pt, which it is but for the optimizer; then "
    f"{_CONVERT}",
)


def plain_dcp(names: Collection[str], said: object) -> Unsupported | None:
    """Return what a DCP folder is that torch saved as it is, by the ``names`` in it; None if it did
    not.

    ``said`` is what its arguments say of its format, if anything.
    """
    if not any(name == "args" or name.startswith(("model.", "app.")) for name in names):
        return None
    return BACKENDS[said if isinstance(said, str) and said in BACKENDS else "torch_dcp"]


def old_optimizer(folders: Iterable[Path]) -> Unsupported | None:
    """Return what rank ``folders`` are if Megatron-LM of 2022 wrote them, else None."""
    return BY_RANK if any((folder / "model_rng.pt").exists() for folder in folders) else None
