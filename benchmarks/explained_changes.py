"""Why outputs of two versions differ: rules, each with the change that it stands for.

A rule is a pattern of files, a pattern of what ``compare_outputs.py`` says of a difference, and the
change, in the words of ``CHANGELOG.md``. A rule says as little as it can: whatever it lets pass is
not looked at any more.
"""

import re

RULES: tuple[tuple[str, str, str], ...] = (
    (
        r"flmgrow\.json$",
        r"^growth\.draw: None -> 1$",
        "manifests say by which version fresh values were drawn (growth.draw)",
    ),
    (
        r"flmgrow\.json$",
        r"^(source\.)?model\.multipliers\.residual: None -> 1\.0$",
        "Granite: model.multipliers.residual is the multiplier of the branches",
    ),
    (
        r"^printed/inspect-",
        r'^[+-]   "(attention_by_inverse_layer|residual)": ',
        "Granite: model.multipliers.residual is the multiplier of the branches",
    ),
    (
        r"^printed/inspect-",
        r'^\+  "out_bias": null,$',
        "more families: biases of attention and FFN apart (out_bias)",
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
        r"flmgrow\.json$",
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
