"""Checkpoints that are nothing but links are read in every format; what is no file is refused."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from commands import accepted
from growing import all_files, grow_checkpoint
from pico import make_checkpoint
from pico_dist import make_dist_checkpoint
from sampling import first

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.manifest import read_manifest
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.opening import open_checkpoint
from flmgrow.storage.links import own_file


def linked(plain: Path, out: Path, store: str) -> Path:
    """Return ``plain`` as links into a store that keeps every file under its sum."""
    root = out / "snapshots" / "abc"
    for file in (path for path in sorted(plain.rglob("*")) if path.is_file()):
        blob = out / store / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = root / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root


@pytest.mark.parametrize(
    "store", first(1, ["blobs", ".git/annex/objects/xx", ".dvc/cache/files/md5"])
)
@pytest.mark.parametrize("form", ["megatron", "torch_dist", "huggingface"])
def test_a_checkpoint_of_links_is_the_checkpoint(tmp_path: Path, form: str, store: str) -> None:
    made = make_checkpoint(tmp_path / "made", "llama", dtype="float32")
    grow_checkpoint(made, tmp_path / "plain", file_format=form)
    if form == "huggingface":
        (tmp_path / "plain/tokenizer.json").write_text("{}")
    links = linked(tmp_path / "plain", tmp_path / "out", store)
    for name, source in (("a", tmp_path / "plain"), ("b", links)):
        command = "export" if form == "huggingface" else "reshard"
        accepted(command, source, tmp_path / name)
    first, second = all_files(tmp_path / "a"), all_files(tmp_path / "b")
    own = {path for path in first if path.endswith(("flmgrow.json", "README.md"))}  # have its name
    assert first.keys() == second.keys()
    assert all(first[path] == second[path] for path in first.keys() - own)
    verdict = accepted("verify", made, links).out
    assert "derived again" in verdict  # its manifest was read, and says what it grew from
    assert json.loads((links / "flmgrow.json").read_text())["receipt"]["equal"]
    assert not (links / "flmgrow.json").is_symlink()


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "common.pt", "metadata.json"])
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("{name}", "loop of symbolic links"),
        ("/dev/zero", "not a regular file"),
        ("/", "is a folder"),
        ("nowhere", "does not exist|wanted also"),
    ],
)
def test_a_link_to_no_file_is_one_line(tmp_path: Path, name: str, target: str, says: str) -> None:
    root = make_dist_checkpoint(tmp_path, "llama")
    (folder,) = root.glob("iter_*")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target.format(name=name))
    with pytest.raises(BadCheckpointError, match=says) as caught:
        open_checkpoint(root)
    assert "\n" not in caught.value.message
    assert name in caught.value.message


@pytest.mark.parametrize("target", ["flmgrow.json", "nowhere", "/dev/zero", "/"])
def test_a_manifest_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, target: str) -> None:
    """Masks that it tells of would be open."""
    (tmp_path / "flmgrow.json").symlink_to(target)
    (tmp_path / TRAINING).symlink_to(target.replace("flmgrow.json", TRAINING))
    with pytest.raises(BadCheckpointError, match=r"flmgrow\.json: (is|does)"):
        read_manifest(tmp_path)
    with pytest.raises(BadCheckpointError, match=rf"{TRAINING}: (is|does)"):
        read_training_state(tmp_path)


def test_what_is_published_is_no_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(BadCheckpointError, match="is a symbolic link out of the folder"):
        own_file(folder, "tokenizer.json")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(BadCheckpointError, match="loop of symbolic links"):
        own_file(folder, "loop")
