"""How tiny models of transformers grow: options of ``flmgrow expand``, by the model's name."""

UNITS = ("--num-layers", 6)
GROWTHS: dict[str, tuple[tuple[object, ...], ...]] = {
    "llama": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, "--num-attention-heads", 8,
         "--num-query-groups", 4, "--vocab-size", 90, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, "--method", "copy"),
    ),
    "llama tied with biases": ((*UNITS, "--hidden-size", 64, "--method", "copy"),),
    "mistral": ((*UNITS, "--hidden-size", 40, "--num-attention-heads", 6, "--method", "zero"),),
    "qwen2": (
        (*UNITS, "--hidden-size", 40, "--ffn-hidden-size", 50, "--method", "zero"),
        ("--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "qwen3": (
        (*UNITS, "--hidden-size", 40, "--method", "zero"),
        ("--hidden-size", 72, "--method", "copy"),
        (*UNITS, "--ffn-hidden-size", 80, "--num-attention-heads", 8, "--num-query-groups", 4,
         "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--method", "copy"),
    ),
    "granite": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, "--num-attention-heads", 8,
         "--num-query-groups", 4, "--vocab-size", 90, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, "--method", "copy"),
    ),
    "granite tied": (
        (*UNITS, "--hidden-size", 40, "--num-attention-heads", 6, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--method", "copy"),
    ),
    "gpt2": (
        (*UNITS, "--ffn-hidden-size", 150, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "gpt_neox": (
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--ffn-hidden-size", 60,
         "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
}  # fmt: skip
_HEADS = ("--num-attention-heads", 8, "--num-query-groups", 4)
GROWTHS |= {
    "llama with attention's biases": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, *_HEADS, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, "--method", "copy"),
    ),
    "gpt_neox without attention's biases": (
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "zero"),
    ),
    "arcee": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, *_HEADS, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, *_HEADS, "--method", "copy"),
    ),
    "nemotron": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, *_HEADS, "--method", "zero"),
        (*UNITS, "--hidden-size", 72, "--ffn-hidden-size", 96, *_HEADS, "--method", "copy"),
    ),
    "nemotron with biases": (
        (*UNITS, "--hidden-size", 40, "--num-attention-heads", 6, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "stablelm": (
        (*UNITS, "--hidden-size", 48, "--num-attention-heads", 6, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, *_HEADS, "--method", "copy"),
    ),
    "phi3": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, *_HEADS, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, *_HEADS, "--method", "copy"),
    ),
    "phi3 tied": (
        (*UNITS, "--hidden-size", 40, "--num-attention-heads", 6, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--method", "copy"),
    ),
    "gpt_bigcode": (
        (*UNITS, "--ffn-hidden-size", 150, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "gpt_bigcode of heads": (
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "gpt_neox in parallel": (
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--ffn-hidden-size", 60,
         "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "stablelm in parallel": (
        (*UNITS, "--ffn-hidden-size", 60, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 8, "--method", "copy"),
    ),
    "llama with yarn": ((*UNITS, "--hidden-size", 48, *_HEADS, "--method", "zero"),),
    "qwen3 with yarn": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "mistral in windows": (
        (*UNITS, "--hidden-size", 48, "--ffn-hidden-size", 80, *_HEADS, "--method", "zero"),
        (*UNITS, "--hidden-size", 64, "--ffn-hidden-size", 96, *_HEADS, "--method", "copy"),
    ),
    "smollm3": (
        ("--num-layers", 7, "--depth-placement", "interleave", "--hidden-size", 48, "--method",
         "zero"),
        (*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),
    ),
    "smollm3 untied": (
        ("--num-layers", 6, "--depth-placement", "0,0,1,2,3,3", *_HEADS, "--method", "zero"),
    ),
    "starcoder2": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "starcoder2 in windows": ((*UNITS, "--hidden-size", 48, *_HEADS, "--method", "zero"),),
    "phi3 in windows": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "phi3 with short factors": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "zero"),),
    "phi3 with long factors": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "seed_oss": ((*UNITS, "--hidden-size", 48, *_HEADS, "--method", "zero"),),
    "seed_oss with an output bias": ((*UNITS, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
}  # fmt: skip
_EVERY = (*UNITS, "--ffn-hidden-size", 80, "--vocab-size", 90)
_COPIED = ("--num-attention-heads", 10, "--num-query-groups", 5, "--method", "copy")
GROWTHS |= {
    "olmo2": (
        (*_EVERY, "--hidden-size", 48, "--method", "zero"),
        (*_EVERY, "--hidden-size", 72, *_COPIED),
        (*UNITS, "--hidden-size", 40, "--num-attention-heads", 6, "--method", "zero,heads=copy"),
    ),
    "olmo2 tied with biases": (
        (*UNITS, "--hidden-size", 64, "--num-attention-heads", 6, "--method", "copy"),
        ("--num-layers", 7, "--depth-placement", "interleave", "--hidden-size", 40, "--method",
         "zero"),
    ),
    "gemma": (
        (*_EVERY, "--hidden-size", 48, *_HEADS, "--method", "zero"),
        (*_EVERY, "--hidden-size", 72, *_COPIED),
    ),
    "gemma untied": (
        (*_EVERY, "--hidden-size", 40, "--method", "zero"),
        (*_EVERY, "--hidden-size", 64, *_COPIED),
    ),
    "gemma2": (
        (*_EVERY, "--hidden-size", 48, *_HEADS, "--method", "zero"),
        ("--num-layers", 7, "--depth-placement", "interleave", "--hidden-size", 80, *_COPIED),
    ),
    "gemma2 uncapped": ((*_EVERY, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "gemma3": (
        ("--num-layers", 9, "--depth-placement", "0,0,1,2,3,4,5,5,6", "--hidden-size", 48, *_HEADS,
         "--method", "zero"),
        ("--num-layers", 8, "--hidden-size", 80, "--ffn-hidden-size", 96, *_COPIED),
    ),
    "gemma3 interpolated": ((*_EVERY, "--hidden-size", 64, *_HEADS, "--method", "zero"),),
    "qwen2 in windows": (
        ("--num-layers", 7, "--depth-placement", "interleave", "--hidden-size", 48, *_HEADS,
         "--method", "zero"),
        (*_EVERY, "--hidden-size", 64, *_HEADS, "--method", "copy"),
    ),
    "qwen3 in windows": ((*_EVERY, "--hidden-size", 64, *_HEADS, "--method", "copy"),),
    "smollm3 in windows": ((*_EVERY, "--hidden-size", 48, *_HEADS, "--method", "zero"),),
}  # fmt: skip
