"""Pushing an exported folder to the Hub, all of it in one commit.

A repository must never be half of one model and half of another, whatever breaks. So everything is
uploaded before anything shows: large files go to storage that no branch points to yet, and a single
commit, pinned to the commit it was made on, brings all of them in at once. A push that broke off
left the branch as it was, and the next one uploads what is not there yet. Only files that the
manifest lists are sent, with the manifest and the card; then the Hub is asked what it has.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flmgrow.errors import HubError, OutputExistsError, UsageError
from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.huggingface.writer import is_shipped
from flmgrow.hub.card import CARD, is_own
from flmgrow.hub.client import AGAIN, LOGIN, patiently, session
from flmgrow.hub.names import HubName
from flmgrow.hub.redaction import Redactor
from flmgrow.text import Pass, Setting, Text

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile

_STALE = re.compile(r"(?!\.)[\w.-]+\.safetensors(?:\.index\.json)?")
"""Weights, which would contradict new ones if they stayed."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Push:
    """Where to push, and how: ``private`` makes a new repository private."""

    name: HubName
    private: bool = False
    keep_code: bool = False

    def check(self) -> None:
        """Ask whether the push can be done, before hours of writing.

        Raises:
            HubError: The Hub refuses, or does not answer.
            OutputExistsError: For a public repository where a private one is wanted.
        """
        with session(self.name) as api:
            if not _logged_in():
                raise HubError("there is no token, and pushing needs one", LOGIN, where=self.name)
            self._exists(api)

    def _exists(self, api: "HfApi") -> bool:
        """Whether the repository is there; a public one will not do for a private push."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = patiently(lambda: api.model_info(self.name.repository))
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            return False
        self._check_private(info)
        return True

    def _check_private(self, info: "ModelInfo") -> None:
        if self.private and not info.private:
            raise OutputExistsError(
                "exists and is public",
                Text(
                    "choose another name, or leave out ",
                    Setting("private", True),
                    "; flmgrow changes no visibility",
                ),
                where=self.name,
                wanted="a private one",
            )

    def run(self, folder: Path, manifest: Manifest, message: str) -> str:
        """Push ``folder``, whose content ``manifest`` describes, and return the commit's address.

        Raises:
            HubError: The Hub refuses, or does not answer.
            OutputExistsError: The output is there, or another run is writing it.
            UsageError: For programs in the folder.
        """
        paths = _files_to_push(folder, manifest, self.keep_code)
        with session(self.name) as api:
            parent = self._prepare(api)
            there = patiently(lambda: _files_there(api, self.name, parent))
            if CARD in there and CARD in paths and is_own(paths[CARD].read_bytes()):
                self._leave_edited_card(api, parent, paths)
            additions = [_addition(path, file) for path, file in paths.items()]
            commit = self._commit(api, parent, additions, there, message)
            arrived = patiently(lambda: _files_there(api, self.name, commit))
            _check_arrived(self.name, arrived, additions)
            return Redactor(None)(f"{api.endpoint}/{self.name.repository}/commit/{commit}")

    def _prepare(self, api: "HfApi") -> str:
        """Make repository and branch if they are not there; return the commit to build on."""
        name = self.name
        if not self._exists(api):
            private = True if self.private else None
            patiently(lambda: api.create_repo(name.repository, private=private, exist_ok=True))
        if name.revision != "main":
            patiently(
                lambda: api.create_branch(name.repository, branch=name.revision, exist_ok=True)
            )
        info = patiently(lambda: api.model_info(name.repository, revision=name.revision))
        self._check_private(info)  # somebody else may have made it meanwhile
        return _commit_id(name, info.sha)

    def _leave_edited_card(self, api: "HfApi", parent: str, paths: dict[str, Path]) -> None:
        """Send no card of our own over one that somebody wrote on the Hub."""
        page = api.hf_hub_download(self.name.repository, CARD, revision=parent)
        if not is_own(Path(page).read_bytes()):
            del paths[CARD]

    def _commit(
        self,
        api: "HfApi",
        parent: str,
        additions: "Sequence[CommitOperationAdd]",
        there: Iterable[str],
        message: str,
    ) -> str:
        """Upload what is to be added, then commit it in place of weights that are there."""
        from huggingface_hub import CommitOperationDelete

        name, sent = self.name, {addition.path_in_repo for addition in additions}
        stale = [path for path in there if _STALE.fullmatch(path) and path not in sent]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions]
        operations += [CommitOperationDelete(path) for path in stale]
        api.preupload_lfs_files(
            name.repository, additions, revision=name.revision, free_memory=False
        )
        done = patiently(
            lambda: api.create_commit(
                name.repository,
                operations,
                commit_message=message,
                revision=name.revision,
                parent_commit=parent,
            )
        )
        return _commit_id(name, done.oid)


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _commit_id(name: HubName, found: object) -> str:
    """Return what the server calls a commit, if it can be one: it is printed."""
    if not isinstance(found, str) or not _COMMIT.fullmatch(found):
        raise HubError("the Hub names no commit", AGAIN, where=name)
    return found


def _files_to_push(folder: Path, manifest: Manifest, keep_code: bool) -> dict[str, Path]:
    """Return the files of the model by their path in the repository.

    Raises:
        UsageError: For programs, which whoever loads the model might run, but for flmgrow's own.
    """
    code = sorted(path.name for path in folder.glob("*.py"))
    foreign = [name for name in code if not is_shipped(folder / name)]
    if foreign and not keep_code:
        raise UsageError(
            f"holds programs ({', '.join(foreign)}), which are not published unasked",
            Text("remove them, or ", Pass("keep_code", True)),
            where=folder,
        )
    listed = [record.path for record in manifest.files]
    names = dict.fromkeys([*listed, *code, MANIFEST, CARD])
    return {name: folder / name for name in names if (folder / name).is_file()}


def _files_there(api: "HfApi", name: HubName, commit: str) -> "dict[str, RepoFile]":
    """Return the files of a commit by their path, as the Hub describes them."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(name.repository, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _addition(path: str, file: Path) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, str(file))


def _check_arrived(
    name: HubName, there: "Mapping[str, RepoFile]", additions: "Sequence[CommitOperationAdd]"
) -> None:
    """Raise HubError unless the Hub has each file as it was sent."""
    for addition in additions:
        entry = there.get(addition.path_in_repo)
        if entry is None or not _is_same(entry, addition):
            raise HubError(
                "the Hub has other content than was sent",
                "push again; if that does not help, report it to the Hub",
                where=(name, addition.path_in_repo),
            )


def _is_same(entry: "RepoFile", addition: "CommitOperationAdd") -> bool:
    """Whether a file of the Hub has the size and the sum of what was sent.

    Of large files the sum is known from sending them; of small ones it is git's.
    """
    info = addition.upload_info
    if entry.lfs is not None:
        return (entry.lfs.size, entry.lfs.sha256) == (info.size, info.sha256.hex())
    with addition.as_file() as content:
        data = content.read()
    digest = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return (entry.size, entry.blob_id) == (info.size, digest.hexdigest())
