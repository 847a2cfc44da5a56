"""What a ``tokenizer.json`` holds beside its rules: how many ids, and which of them are special.

Without a ``tokenizer_config.json`` beside it, transformers takes the tokenizer for one of the
model's usual kind, and adds that kind's special tokens behind the vocabulary. So one is made.
"""

import json
from collections.abc import Mapping

from flmgrow.formats.companions import Ids, ids_of
from flmgrow.storage.strict_json import Json

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""What the token is called that ends a document, where only its name tells."""

_NAMES = {"bos_token_id": "bos_token", "eos_token_id": "eos_token", "pad_token_id": "pad_token"}


def parsed(content: bytes) -> Json:
    """Return the JSON object in a file of a tokenizer; an empty one for anything else.

    transformers will say what is wrong with it: nothing here depends on it.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _added(tokenizer: Json) -> dict[str, int]:
    """Return the tokens that stand for themselves wherever they are in a text, with their ids."""
    tokens = tokenizer.get("added_tokens")
    found = {}
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            found[str(token.get("content"))] = int(token["id"])
    return found


def id_count(tokenizer: Json) -> int:
    """Return one more than the largest id of a tokenizer; 0 if it does not tell."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(_added(tokenizer).values())
    if isinstance(vocab, dict):
        ids += [value for value in vocab.values() if isinstance(value, int)]
    if isinstance(vocab, list):
        ids.append(len(vocab) - 1)
    return max(ids, default=-1) + 1


def _text(token: object) -> str | None:
    """Return a token as ``tokenizer_config.json`` names it: a text, or an object with one."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def named_ids(tokenizer: Json, config: Json) -> dict[str, object]:
    """Return the special ids that ``tokenizer_config.json`` names; else the end, by its name."""
    added = _added(tokenizer)
    found: dict[str, object] = {}
    for name, key in _NAMES.items():
        text = _text(config.get(key))
        if text in added:
            found[name] = added[text]
    if not config:
        usual = next((added[name] for name in END_NAMES if name in added), None)
        found |= {} if usual is None else {"eos_token_id": usual}
    return found


def made_config(tokenizer: Json, ids: Ids, longest: int) -> bytes:
    """Return a ``tokenizer_config.json``: nothing but this tokenizer, with the special ``ids``.

    ``longest`` is the number of tokens in the longest text. A special id without a token of its own
    is left out: naming an ordinary token would make it special in every text.
    """
    tokens: Mapping[int, str] = {number: text for text, number in _added(tokenizer).items()}
    special = {
        key: tokens[ids_of(ids.get(name))[0]]
        for name, key in _NAMES.items()
        if ids_of(ids.get(name)) and ids_of(ids.get(name))[0] in tokens
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"
