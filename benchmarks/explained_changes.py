"""Why outputs of two versions differ: rules, each with the change that it stands for.

A rule is a pattern of files, a pattern of what ``compare_outputs.py`` says of a difference, and the
change, in the words of ``CHANGELOG.md``. A rule says as little as it can: whatever it lets pass is
not looked at any more.
"""

import re

_MANIFEST = r"flmgrow\.json$|^printed/inspect-"
"""Manifests, and what ``inspect`` says of the same model."""

_STAGES = r"^stages/.*"

RULES: tuple[tuple[str, str, str], ...] = (
    (
        r"flmgrow\.json$",
        r"^growth\.draw: None -> 1$",
        "manifests say by which version fresh values were drawn (growth.draw)",
    ),
    (
        _MANIFEST,
        r"^(source\.)?model\.multipliers\.residual: None -> 1\.0$",
        "Granite: model.multipliers.residual is the multiplier of the branches",
    ),
    (
        rf"{_STAGES}stage\.yaml$",
        r"^\+    residual: 1\.0$",
        "Granite: model.multipliers.residual is the multiplier of the branches",
    ),
    (
        _MANIFEST,
        r"^(source\.)?model\.residual: None -> 'sequential'$",
        "attention and FFN in parallel (GPT-NeoX, StableLM): model.residual",
    ),
    (
        _MANIFEST,
        r"^(source\.)?model\.(layer_kinds: None -> \[\]"
        r"|rotary\.scaling_(context: None -> 8192|fast: None -> 4\.0|slow: None -> 1\.0))$",
        "windows, layers that do not rotate, Llama 3's scaling with other bands",
    ),
    (
        _MANIFEST,
        r"^(source\.)?model\.(norm_places: None -> 'before'|qk_norm_of_all: None -> False"
        r"|multipliers\.embedding_by_width: None -> False)$",
        "OLMo 2 and Gemma: norms after branches, one norm over all heads, embeddings by the width",
    ),
    (
        r"flmgrow(_training)?\.json$",
        r"^lags: None -> \[\]$",
        "a stage may train only what is new (training.freeze): what counts its own steps is told",
    ),
    (
        _MANIFEST,
        r"^fresh: None -> \{|^\+fresh  .* made by the last growth$",
        "what the last growth made is known through reshard, export and import (fresh)",
    ),
    (
        rf"{_STAGES}flmgrow_training\.json$",
        r"^fresh: None -> \{",
        "what the last growth made is known through reshard, export and import (fresh)",
    ),
    (
        r"^(exported|hf-).*flmgrow\.json$",
        r"^files\[\]\.parts: None -> \[",
        "manifests of exports have a sum for each tensor (parts)",
    ),
    (
        r"^copied/.*flmgrow\.json$",
        r"^receipt\.(checks\[\]\.(tolerance|detail): .*|xxh3_128: )",
        "norms and angles of models of 16 bits are computed in float32: less rounding is allowed",
    ),
    (
        r"^printed/verify-copy\.txt$",
        r"^[+-]ok         function +max \|dlogit\| 1\.28e-02 of 1\.13 \(allowed 1\.[34]e-01",
        "norms and angles of models of 16 bits are computed in float32: less rounding is allowed",
    ),
    (
        r"flmgrow(_training)?\.json$",
        r"^(carried|training)\.(readings: None -> \[|passed_over: None -> \[\])",
        "a stage may read data of its own, or go back past some: what was read is told",
    ),
    (
        rf"{_STAGES}flmgrow_training\.json$",
        r"^settings\.(guard\.(action: None -> 'stop'|rollbacks: None -> 3)"
        r"|learning_rate\.(cooldown: None -> 'linear'|warmup_share: None -> 0\.0))$",
        "stage files have new keys, and say what they are where nobody says otherwise",
    ),
    (
        rf"{_STAGES}stage\.yaml$",
        r"^\+  [a-z_]+: (false|linear|\[\]|stop|3|0\.0)$",
        "stage files have new keys, and say what they are where nobody says otherwise",
    ),
    (
        rf"{_STAGES}metrics\.jsonl$",
        r"^\[\]\.(by_corpus|bits_per_byte|sets): None -> ",
        "every validation tells bits per byte, and the loss of each corpus",
    ),
    (
        r"^printed/stages\.txt$",
        r"^[+-](small|middle|large)  step \d\d  validation loss 0\.\d{4}( |$)",
        "every validation tells bits per byte, and the loss of each corpus",
    ),
    (
        rf"{_STAGES}metrics\.jsonl$",
        r"^\[\]\.(updates|updates_by_dimension|by_corpus): None -> \{\}$",
        "steps tell how far parts move, and losses by corpus, where it is asked for",
    ),
    (
        rf"{_STAGES}metrics\.jsonl$",
        r"^\[\]\.(seconds|tokens_per_second|model_tflops): ",
        "wall time, which no two runs have in common",
    ),
    (
        r"flmgrow(_training)?\.json$",
        r"^(receipt\.)?xxh3_128: ",
        "a manifest's sum over its own content follows from the content",
    ),
)


def explanation_of(file: str, difference: str) -> str | None:
    """Return why ``file`` differs so, or None if no rule says it."""
    for pattern, what, why in RULES:
        if re.search(pattern, file) and re.search(what, difference):
            return why
    return None
