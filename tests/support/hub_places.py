"""Pointing flmgrow at a Hub on loopback, and looking for its token wherever it might have got."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Outcome, flmgrow
from hub_server import TOKEN, Hub, Repository, serving

NAME = "org/model"
NOTHING: Mapping[str, bytes] = {}


@contextmanager
def hub_at(place: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a Hub and let this process use it, with a cache of its own and no waiting."""
    from huggingface_hub import close_session, constants

    with serving() as hub:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.delenv("HF_HUB_OFFLINE", raising=False)  # other tests must not reach the Hub
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", _template(hub.endpoint))
        patch.setattr(time, "sleep", lambda _: None)
        close_session()
        try:
            yield hub
        finally:
            close_session()


def _template(endpoint: str) -> str:
    return endpoint + "/{repo_id}/resolve/{revision}/{filename}"


def upload(
    hub: Hub, folder: Path, name: str = "org/model", more: Mapping[str, bytes] = NOTHING
) -> str:
    """Put a folder's files on the Hub and return the commit."""
    repository = hub.repositories.setdefault(name, Repository())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return repository.commit("main", {**files, **more})


def leaks(outcome: Outcome, *folders: Path) -> list[str]:
    """Where the token stands: in what was printed, and in any file or name below the folders."""
    found = [name for name in ("out", "err") if TOKEN in getattr(outcome, name)]
    for folder in folders:
        for root, _, files in os.walk(folder):
            for name in files:
                path = Path(root, name)
                if TOKEN in str(path) or TOKEN.encode() in path.read_bytes():
                    found.append(str(path))
    return found


def manifest(folder: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((folder / "flmgrow.json").read_text())
    return data


def push(source: Path, *more: object) -> Outcome:
    return flmgrow("export", source, source.parent / "out", "--push-to", NAME, *more)


def check_whole(hub: Hub, folder: Path, revision: str = "main") -> None:
    """What is on the Hub is what is in the folder, all of it in one commit on the first."""
    repository = hub.repositories[NAME]
    there = {path: data for path, data in repository.files(revision).items() if path[0] != "."}
    assert there == {path.name: path.read_bytes() for path in folder.iterdir()}
