"""A digest of items, so that two results can be told to be of the same ones."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def digest_of(*splits: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of the documents of some splits, in their order."""
    made = hashlib.sha256()
    for number, split in enumerate(splits):
        for document in split:
            text = json.dumps([number, document], ensure_ascii=False, sort_keys=True)
            made.update(text.encode() + b"\n")
    return f"sha256:{made.hexdigest()}"
