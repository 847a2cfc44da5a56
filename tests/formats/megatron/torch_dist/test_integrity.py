"""``integrity.json`` is written in passing, as megatron-core would, and believed only as far as it
can be.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import flmgrow
from growing import grow_checkpoint
from pico_dist import make_dist_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.opening import open_checkpoint
from flmgrow.storage import output
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest

INTEGRITY = "integrity.json"


MANIFEST = "flmgrow.json"
"""flmgrow's own, which is written when all sums are known."""


def folder_of(checkpoint: Path) -> Path:
    (folder,) = checkpoint.glob("iter_*")
    return folder


def manifest_of(folder: Path) -> str:
    """The file that megatron-core 0.19 writes into a folder; compared with the real one's bytes
    where that can be had (test_real_torch_dist.py).
    """
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir(), key=str)
        if path.name not in (INTEGRITY, MANIFEST)
    }
    return json.dumps({"algorithm": "sha256", "files": sums}, indent=2)


def add_manifest(checkpoint: Path) -> Path:
    folder = folder_of(checkpoint)
    (folder / INTEGRITY).write_text(manifest_of(folder))
    return folder


def tree(checkpoint: Path) -> dict[str, bytes]:
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in files}


@pytest.mark.parametrize("version", ["0.16", "0.19"])
def test_it_is_written_as_megatron_would(tmp_path: Path, version: str) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    grow_checkpoint(source, tmp_path / "out", request=LayoutRequest(4, 1), version=version)
    folder = folder_of(tmp_path / "out")
    assert (folder / INTEGRITY).read_text() == manifest_of(folder)
    with open_checkpoint(tmp_path / "out") as opened:
        assert opened.contents.verify(lambda _: None) == ("CRC32", "SHA-256")


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    for workers in (1, 4):
        execution = Execution(workers=workers, max_memory=1 << 29)
        grow_checkpoint(source, tmp_path / f"{workers}", execution=execution)
    assert tree(tmp_path / "1") == tree(tmp_path / "4")


def stop_after(count: int) -> Callable[[int], None]:
    """Interrupt a run once so many bytes are written."""
    left = count

    def progress(written: int) -> None:
        nonlocal left
        left -= written
        if left <= 0:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_it_is_right_after_an_interruption(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    plan = grow_checkpoint(source, tmp_path / "whole", request=LayoutRequest(4, 1))
    stop = Execution(progress=stop_after(int(plan.total_bytes * share)))
    with pytest.raises(KeyboardInterrupt):
        grow_checkpoint(source, tmp_path / "out", request=LayoutRequest(4, 1), execution=stop)
    begun = []
    write = output.OutputFolder.file

    def noted(folder: output.OutputFolder, relative: str, *args: Any, **kwargs: Any) -> Any:
        begun.append(relative)
        return write(folder, relative, *args, **kwargs)

    monkeypatch.setattr(output.OutputFolder, "file", noted)
    grow_checkpoint(source, tmp_path / "out", request=LayoutRequest(4, 1))
    assert 0 < len(begun) < len(plan.files)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_legacy_files_are_not_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)

    def refuse() -> None:
        raise AssertionError("SHA-256 costs time that nobody asked for")

    monkeypatch.setattr(hashlib, "sha256", refuse)
    grow_checkpoint(source, tmp_path / "out", file_format="megatron")
    with pytest.raises(AssertionError, match="nobody asked"):
        grow_checkpoint(source, tmp_path / "other")


def test_a_flipped_bit_is_found_in_any_file(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    grow_checkpoint(source, tmp_path / "out")
    folder = folder_of(tmp_path / "out")
    for manifest in (tmp_path / "out" / MANIFEST, folder / MANIFEST):
        manifest.unlink()
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BadCheckpointError) as caught, open_checkpoint(tmp_path / "out") as out:
            out.contents.verify(lambda _: None)
        assert path.name in str(caught.value)
        path.write_bytes(content)


def test_verify_names_the_damaged_file(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    folder = add_manifest(source)
    grow_checkpoint(source, tmp_path / "out")
    good = flmgrow("verify", source, tmp_path / "out")
    assert (good.code, "CRC32, SHA-256 and xxh3 of" in good.out) == (0, True)
    (folder / "metadata.json").write_text("{}")
    sums = json.loads((folder / INTEGRITY).read_text())
    sums["files"]["metadata.json"] = "0" * 64
    (folder / INTEGRITY).write_text(json.dumps(sums))
    with open_checkpoint(source):
        pass  # sums are not taken to open one
    bad = flmgrow("verify", source, tmp_path / "out")
    assert bad.code == 1
    assert f"{folder / 'metadata.json'}: damaged: SHA-256" in bad.out


def listing(**files: str | None) -> Callable[[dict[str, Any]], object]:
    """Change what is listed; None takes a file out."""

    def change(content: dict[str, Any]) -> object:
        listed = {**content["files"], **{k.replace("_SLASH_", "/"): v for k, v in files.items()}}
        return {**content, "files": {name: s for name, s in listed.items() if s is not None}}

    return change


SUM = "0" * 64


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (listing(**{"../x": SUM}), r"'\.\./x': found a file outside the checkpoint"),
        (listing(**{"/etc/passwd": SUM}), "'/etc/passwd': found a file outside"),
        (listing(**{"..": SUM}), "found a file outside"),
        (listing(**{"a\\b": SUM}), "found a file outside"),
        (listing(**{"x" * 300: SUM}), "found 4 of 5 files, wanted also xxx"),
        (listing(gone=SUM, lost=SUM), "found 4 of 6 files, wanted also gone, lost"),
        (listing(**{"__0_0.distcp": None}), r"__0_0\.distcp: not listed"),
        (listing(**{"common.pt": None}), r"common\.pt: not listed"),
        (listing(**{"common.pt": "0"}), r"'common\.pt': found '0', wanted a SHA-256 sum"),
        (lambda content: {**content, "algorithm": "md5"}, "found 'md5', wanted sha256"),
        (lambda content: {**content, "files": []}, "has no files"),
        (lambda content: [content], "has no files"),
        (lambda content: "x" * (64 << 20), "found 67108866 bytes, wanted at most 67108864"),
    ],
)
def test_it_is_not_believed(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    source = make_dist_checkpoint(tmp_path, "llama")
    path = add_manifest(source) / INTEGRITY
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BadCheckpointError, match=rf"integrity\.json: .*{match}"):
        open_checkpoint(source)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    source = make_dist_checkpoint(tmp_path, "llama")
    (add_manifest(source) / INTEGRITY).write_text(content)
    with pytest.raises(BadCheckpointError, match=r"integrity\.json: not readable"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["metadata.json", INTEGRITY])
def test_a_link_is_the_file_it_leads_to(tmp_path: Path, name: str) -> None:
    source = make_dist_checkpoint(tmp_path, "llama")
    (folder_of(source) / "metadata.json").write_text("{}")
    path = add_manifest(source) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with open_checkpoint(source) as opened:
        assert opened.contents.verify(lambda _: None) == ("CRC32", "SHA-256")
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(BadCheckpointError, match=f"{name}: does not exist"):
        open_checkpoint(source)
