"""A sum that plain data carries over its own content, so that a changed character is told.

JSON keeps neither spaces nor the order of keys, so the sum is of one spelling of it: without
spaces, keys in order.
"""

import json

import xxhash

from flmgrow.storage.strict_json import Json

SUM = "xxh3_128"
"""The key it stands under."""


def sum_of(content: Json) -> str:
    """Return the XXH3 (128 bits, hexadecimal) of ``content`` but for a sum in it."""
    plain = {key: value for key, value in content.items() if key != SUM}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def with_sum(content: Json) -> Json:
    """Return ``content`` with its sum."""
    return {**content, SUM: sum_of(content)}


def is_intact(content: Json) -> bool:
    """Whether ``content`` has a sum, and is what it was taken of."""
    return bool(content.get(SUM) == sum_of(content))
