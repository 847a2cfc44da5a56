"""Recognising a corpus that is already prepared.

The same ``data prepare`` after one that was finished has nothing to do, and can tell. A corpus'
manifest says what it was made of. If that is what is wanted now, by name, bytes, recipe and limits,
and its files are whole, it is the result: whether a run was ended after its last step, or somebody
gives the command again, the answer is the same.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flmgrow.errors import FlmgrowError
from flmgrow.storage.checksums import FileRecord, checksum_of, is_intact
from flmgrow.storage.marker import refuse_marked
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.parts import LOST, Recipe
from flmgrow.trainer.data.prepare import MANIFEST, PREFIX, AllowedLoss
from flmgrow.trainer.data.sources import Sources


def found(
    folder: Path,
    sources: Sources,
    recipe: Recipe,
    limits: AllowedLoss,
    progress: Callable[[int], None],
) -> Json | None:
    """Return the manifest of the corpus in ``folder`` if it is the one wanted, and whole.

    ``progress`` gets the bytes of sources read since its last call. None for anything else that
    lies there, damaged or made of other text.
    """
    try:
        refuse_marked(folder)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        same = _is_wanted(manifest, sources, recipe, limits)
        whole = same and all(
            is_intact(folder, FileRecord(file["path"], file["size"], file["xxh3_128"]))
            for file in manifest["files"]
        )
        unchanged = whole and all(
            checksum_of(source.path, progress) == said["xxh3_128"]
            for source, said in zip(sources.files, manifest["sources"], strict=True)
        )
    except (OSError, FlmgrowError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(manifest) if unchanged else None


def _is_wanted(
    manifest: Mapping[str, Any], sources: Sources, recipe: Recipe, limits: AllowedLoss
) -> bool:
    """Whether a manifest is of what is wanted, as far as that shows without reading the text."""
    wanted = recipe.to_json()
    bad = sum(entry["count"] for entry in manifest["bad_lines"].values())
    lost = manifest["missing"].get(LOST, {"count": 0})["count"]
    named = [(source.name, source.path.stat().st_size) for source in sources.files]
    return (
        all(manifest[key] == wanted[key] for key in ("tokenizer", "key", "append_eod"))
        and [(said["name"], said["size"]) for said in manifest["sources"]] == named
        and {file["path"] for file in manifest["files"]} == {f"{PREFIX}.bin", f"{PREFIX}.idx"}
        and bad <= limits.bad
        and lost <= limits.lost * manifest["characters"]
    )
