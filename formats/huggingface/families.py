"""The families of transformers that flmgrow knows: a table, one entry each."""

import re
from collections.abc import Callable, Mapping

from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields import row as types
from flmgrow.formats.huggingface.fields.row import FieldReader
from flmgrow.formats.huggingface.flm import CODE, read_flm
from flmgrow.formats.huggingface.gemma import read_gemma, read_gemma2, read_gemma3
from flmgrow.formats.huggingface.gpt import read_gpt2, read_gpt_bigcode, read_neox
from flmgrow.formats.huggingface.llama import (
    read_arcee,
    read_granite,
    read_llama,
    read_mistral,
    read_nemotron,
    read_olmo2,
    read_phi3,
    read_qwen2,
    read_qwen3,
    read_seed_oss,
    read_smollm3,
    read_stablelm,
    read_starcoder2,
)
from flmgrow.formats.tables import huggingface as tables
from flmgrow.formats.tables.row import Row
from flmgrow.model.config import ModelConfig

_LLAMA_BUFFERS = re.compile(
    r"model\.(?:layers\.[0-9]{1,6}\.self_attn\.)?rotary_emb\.inv_freq|rotary_emb\.inv_freq"
)
_GPT2_BUFFERS = re.compile(r"(?:transformer\.)?h\.[0-9]{1,6}\.attn\.(?:masked_)?bias")
_NEOX_BUFFERS = re.compile(
    r"(?:gpt_neox\.)?layers\.[0-9]{1,6}\.attention\."
    r"(?:bias|masked_bias|rotary_emb\.inv_freq)"
)


_PHI3_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    "AutoTokenizer": "Xenova/gpt-4o",
}
"""What Phi-3 and Phi-4 are published with: the code from before transformers had its own."""


def _of_llama(
    name: str,
    architecture: str,
    read: Callable[[FieldReader], ModelConfig],
    usual_ids: tuple[int | None, int | None] = (None, None),
    rows: tuple[Row, ...] = tables.LLAMA,
    older_code: Mapping[str, str] | None = None,
) -> Family:
    return Family(
        name, architecture, rows, "model.", _LLAMA_BUFFERS, read, usual_ids=usual_ids,
        older_code=older_code or {},
    )  # fmt: skip


_FAMILIES = (
    _of_llama(types.LLAMA, "LlamaForCausalLM", read_llama, (1, 2)),
    _of_llama(types.QWEN2, "Qwen2ForCausalLM", read_qwen2),
    _of_llama(types.QWEN3, "Qwen3ForCausalLM", read_qwen3),
    _of_llama(types.MISTRAL, "MistralForCausalLM", read_mistral, (1, 2)),
    Family(
        types.GPT2, "GPT2LMHeadModel", tables.GPT2, "transformer.", _GPT2_BUFFERS, read_gpt2,
        rows.N_POSITIONS, (50256, 50256),
    ),
    Family(
        types.GPT_NEOX, "GPTNeoXForCausalLM", tables.GPT_NEOX, "gpt_neox.", _NEOX_BUFFERS,
        read_neox, usual_ids=(0, 2),
    ),
    Family(
        types.FLM, "FLMForCausalLM", tables.GPT2, "transformer.", _GPT2_BUFFERS, read_flm,
        rows.N_POSITIONS, code=CODE,
    ),
    _of_llama(types.GRANITE, "GraniteForCausalLM", read_granite, (1, 2)),
    _of_llama(types.ARCEE, "ArceeForCausalLM", read_arcee, (128000, 128001)),
    _of_llama(types.NEMOTRON, "NemotronForCausalLM", read_nemotron, (2, 3)),
    _of_llama(types.STABLELM, "StableLmForCausalLM", read_stablelm, (0, 0)),
    _of_llama(types.PHI3, "Phi3ForCausalLM", read_phi3, (1, 32000), tables.PHI3, _PHI3_CODE),
    Family(
        types.GPT_BIGCODE, "GPTBigCodeForCausalLM", tables.GPT_BIGCODE, "transformer.",
        _GPT2_BUFFERS, read_gpt_bigcode, rows.N_POSITIONS, (50256, 50256),
    ),
    _of_llama(types.SEED_OSS, "SeedOssForCausalLM", read_seed_oss, (0, 2)),
    _of_llama(types.SMOLLM3, "SmolLM3ForCausalLM", read_smollm3, (128000, 128001)),
    _of_llama(
        types.STARCODER2, "Starcoder2ForCausalLM", read_starcoder2, (50256, 50256),
        tables.STARCODER2,
    ),
    _of_llama(types.OLMO2, "Olmo2ForCausalLM", read_olmo2, (None, 50279), tables.NORMED_AFTER),
    _of_llama(types.GEMMA, "GemmaForCausalLM", read_gemma, (2, 1)),
    _of_llama(types.GEMMA2, "Gemma2ForCausalLM", read_gemma2, (2, 1), tables.NORMED_AFTER),
    _of_llama(types.GEMMA3, "Gemma3ForCausalLM", read_gemma3, (2, 1), tables.NORMED_AFTER),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    name: family for name in types.MODEL_TYPES for family in _FAMILIES if family.name == name
}
"""By ``model_type``, in the order in which they are tried for a model that came from elsewhere."""
