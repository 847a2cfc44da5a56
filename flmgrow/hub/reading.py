"""Fetching a model from the Hub into the cache, to be read as a Hugging Face folder.

A model on the Hub is a Hugging Face folder once it lies in the cache. Only files that can be read
are fetched: no pickles, no programs, nothing in subfolders. A branch is resolved to the commit it
stood at, which the manifest of what is made from it names.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from flmgrow.errors import HubError
from flmgrow.formats.checkpoint import HubOrigin
from flmgrow.formats.companions import GENERATION
from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.huggingface.contents import CONFIG, INDEX
from flmgrow.hub.client import AGAIN, patiently, session
from flmgrow.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FETCHED = (
    CONFIG,
    GENERATION,
    INDEX,
    MANIFEST,
    "*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "spiece.model",
)
LEFT = ("*/*", "*.py", "*.bin", "consolidated*.safetensors")
"""Subfolders, programs, pickles, and Mistral's second copy of the same weights."""


def fetch(name: HubName) -> tuple[Path, HubOrigin]:
    """Return the folder in the cache that holds ``name``, fetched if need be, and its origin.

    Offline (``HF_HUB_OFFLINE``), what the cache holds is taken.

    Raises:
        HubError: The Hub refuses, or does not answer.
    """
    with session(name) as api:
        from huggingface_hub.constants import is_offline_mode

        commit = None if is_offline_mode() else _commit(api, name)
        folder = Path(
            api.snapshot_download(
                name.repository,
                revision=name.revision,
                allow_patterns=list(FETCHED),
                ignore_patterns=list(LEFT),
                local_files_only=commit is None,
            )
        )
        if commit not in (None, folder.name):
            raise HubError("changed while it was read", AGAIN, where=name)
    return folder, HubOrigin(name.repository, folder.name)


def _commit(api: "HfApi", name: HubName) -> str | None:
    """Return the commit that ``name`` is at; the library alone would pass over a refusal here."""
    info = patiently(lambda: api.model_info(name.repository, revision=name.revision))
    return info.sha
