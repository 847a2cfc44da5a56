"""All fields of ``config.json`` that are known, and those that cannot matter in any family.

``config.py`` says how they are used. A field that nothing here explains passes if it says nothing
(null, false, zero, empty), with a note; else it stops the import. The names are those of
transformers 4.0 to 5.23, and what published models of the supported families carry beside them.
"""

import re
from collections.abc import Mapping
from typing import Any

from flmgrow.formats.companions import IDS
from flmgrow.formats.huggingface.fields.flm_rows import FLM_ROWS
from flmgrow.formats.huggingface.fields.gemma_rows import GEMMA_ROWS
from flmgrow.formats.huggingface.fields.granite_rows import GRANITE_ROWS
from flmgrow.formats.huggingface.fields.model_rows import MODEL_ROWS
from flmgrow.formats.huggingface.fields.rotary_rows import ROTARY_ROWS
from flmgrow.formats.huggingface.fields.row import Field
from flmgrow.formats.huggingface.fields.switch_rows import SWITCH_ROWS
from flmgrow.formats.huggingface.fields.window_rows import WINDOW_ROWS


def _harmless(name: str, private: bool = False) -> Field[object]:
    return Field(name, harmless=True, private=private)


ARCHITECTURES, MODEL_TYPE = _harmless("architectures"), _harmless("model_type")
DTYPE_ROWS = _harmless("dtype"), _harmless("torch_dtype")
"""What the weights are: transformers 5 reads the first, 4 the second."""

BEGIN, END, PADDING = (_harmless(name) for name in IDS)
"""The ids that begin, end and fill texts."""

LABEL_ROWS = (
    ARCHITECTURES, MODEL_TYPE, *DTYPE_ROWS, BEGIN, END, PADDING,
    _harmless("_name_or_path", private=True), _harmless("_commit_hash", private=True),
)  # fmt: skip
"""What says how a model is stored and spoken to. The private ones tell of the machine or the
repository a file was made on.
"""

ROWS: Mapping[str, Field[Any]] = {
    row.name: row
    for row in (
        *MODEL_ROWS, *WINDOW_ROWS, *ROTARY_ROWS, *FLM_ROWS, *GRANITE_ROWS, *GEMMA_ROWS,
        *SWITCH_ROWS, *LABEL_ROWS,
    )
}  # fmt: skip
"""Every row, by its name."""

HARMLESS = frozenset(
    """
    transformers_version
    _attn_implementation _attn_implementation_autoset attn_implementation use_cache
    sep_token_id unk_token_id decoder_start_token_id
    initializer_range pretraining_tp attention_dropout hidden_dropout classifier_dropout
    resid_pdrop embd_pdrop attn_pdrop summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj reorder_and_upcast_attn
    is_decoder gradient_checkpointing use_bfloat16 tokenizer_class
    problem_type id2label label2id num_labels finetuning_task task_specific_params output_past
    output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    kv_channels inference_runner max_batch_size pad_key_length pre_allocate_kv_cache
    validate_runner_input runner_max_sequence_length cache_implementation internal_version
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences begin_suppress_tokens
    suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty tf_legacy_loss custom_pipelines transformers.js_config
    n_special predict_special_tokens ignore_index seq_length eos_token bos_token pad_token
    unk_token sep_token attn_impl kv_cache_dtype use_mem_efficient_attention loss_type
    """.split()
)
"""Names that say how a model is trained, sampled from, labelled or stored; not what it computes."""

_HARMLESS_KINDS = re.compile(
    r"_.*"  # transformers' own notes on a loaded model, such as _flash_attn_2_enabled
    r"|unsloth_.*|neftune_.*|tokenizer_.*|summary_.*"
    r"|.*dropout.*|.*layerdrop.*|.*_pdrop|.*initializer_.*|.*_init_std"
    r"|.*_token_ids?|.*_token_index"
    r"|max_(?:sequence|seq|model)_len(?:gth)?|model_max_length"
    r"|(?:use_)?(?:flash|fused|sdpa|xformers).*|.*_in_fp32"
)
"""Kinds of names: whatever comes after, they speak of training, texts or how kernels compute."""


def is_harmless(name: str) -> bool:
    """Whether a field's name says that it cannot change what the model computes."""
    row = ROWS.get(name)
    if row is not None and row.harmless:
        return True
    return name in HARMLESS or _HARMLESS_KINDS.fullmatch(name) is not None
