"""What a ``tokenizer.json`` says of the way back, from tokens to text.

Programs that only encode leave it out, or ask for prose that reads well. To compare a text with
what becomes of it the way back must be the exact opposite of the way there.
"""

from collections.abc import Iterator
from typing import Any

from flmgrow.storage.strict_json import Json

_BYTES: Json = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def with_way_back(content: Json) -> Json:
    """Return a tokenizer with a decoder that is the opposite of what it does to text.

    One that it has is kept, but for what that would put right in the text.
    """
    decoder = content.get("decoder") or _decoder_of(content)
    for part in _parts(decoder):
        if "cleanup" in part:
            part["cleanup"] = False
    return {**content, "decoder": decoder}


def unknown_id(content: Json) -> int | None:
    """Return the token that stands for what has none, or None if there is no such token."""
    model = content.get("model")
    if not isinstance(model, dict):
        return None
    vocabulary, name = model.get("vocab"), model.get("unk_token")
    added = content.get("added_tokens") or []
    ids = {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
    if isinstance(vocabulary, dict):
        ids |= vocabulary
    found = model.get("unk_id") if name is None else ids.get(name)
    return found if isinstance(found, int) else None


def _decoder_of(content: Json) -> Json:
    model = content.get("model") or {}
    ways = {part.get("type"): part for part in _parts(content.get("pre_tokenizer"))}
    if "ByteLevel" in ways:
        return dict(_BYTES)
    steps: list[Json] = []
    if model.get("byte_fallback"):
        steps.append({"type": "ByteFallback"})
    if "Metaspace" in ways:
        steps.append({**ways["Metaspace"]})
    if model.get("end_of_word_suffix"):
        steps.append({"type": "BPEDecoder", "suffix": model["end_of_word_suffix"]})
    if prefix := model.get("continuing_subword_prefix"):
        steps.append({"type": "WordPiece", "prefix": prefix, "cleanup": False})
    return {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]}


def _parts(value: Any) -> Iterator[Json]:
    """Yield all mappings inside of a part of a tokenizer."""
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in inside:
            yield from _parts(inner)
