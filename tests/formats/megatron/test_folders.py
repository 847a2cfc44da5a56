"""Whatever lies in a checkpoint's folder: a bounded read, one line, and the iteration to take."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import accepted, refused
from damage import edit, rank_files
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.folders import TRACKER, iteration_folder, looks_complete, others
from flmgrow.formats.opening import open_checkpoint
from flmgrow.text import COMMAND_LINE, render

OLDER, NEWER = "iter_0000010", "iter_0000030"


def legacy(path: Path) -> Path:
    """Two iterations on two ranks, the tracker at the newer one."""
    config = CONFIGS["llama"]
    for iteration in (10, 30):
        make_checkpoint(path, config, even(config, tp=2), iteration=iteration)
    return path


def distributed(path: Path) -> Path:
    root = make_dist_checkpoint(path, "llama")
    shutil.copytree(root / NEWER, root / OLDER)
    edit(root / OLDER / "common.pt", lambda common: common.update(iteration=10))
    return root


def hint_of(path: Path, iteration: int | None = None) -> str:
    with pytest.raises(BadCheckpointError) as caught:
        open_checkpoint(path, iteration)
    return render(caught.value.hint, COMMAND_LINE)


def first_rank(root: Path) -> Path:
    return rank_files(root)[-1]


Change = Callable[[Path], object]


def empty(root: Path) -> None:
    shutil.rmtree(root / NEWER)
    (root / NEWER).mkdir()


def remove(name: str) -> Change:
    return lambda root: next((root / NEWER).rglob(name)).unlink()


def cut(name: str) -> Change:
    def change(root: Path) -> None:
        path = next((root / NEWER).rglob(name))
        os.truncate(path, path.stat().st_size // 2)

    return change


def half_copied(root: Path) -> None:
    path = next((root / NEWER).rglob("model_optim_rng.pt"))
    path.rename(f"{path}.part")


LEGACY: dict[str, Change] = {
    "empty": empty,
    "a rank is missing": lambda root: shutil.rmtree(root / NEWER / "mp_rank_01"),
    "a file is missing": remove("model_optim_rng.pt"),
    "cut short": cut("model_optim_rng.pt"),
    "half copied": half_copied,
}
DISTRIBUTED: dict[str, Change] = {
    "empty": empty,
    "no metadata": remove(".metadata"),
    "no shard": remove("__0_0.distcp"),
    "cut short": cut("__0_0.distcp"),
    "no common part": remove("common.pt"),
    "still being saved": lambda root: (root / NEWER / ".metadata.tmp").touch(),
}
CASES = [(legacy, change) for change in LEGACY.values()]
CASES += [(distributed, change) for change in DISTRIBUTED.values()]


@pytest.mark.parametrize(("make", "change"), CASES, ids=[*LEGACY, *DISTRIBUTED])
def test_the_newest_complete_iteration_is_named_and_opens(
    tmp_path: Path, make: Callable[[Path], Path], change: Change
) -> None:
    root = make(tmp_path)
    change(root)
    hint = hint_of(root)
    assert f"the newest complete iteration is 10: give {root / OLDER}, or --iteration 10" in hint
    assert hint.endswith(f"or write 10 into {TRACKER}")
    accepted("inspect", root, "--iteration", 10)
    accepted("inspect", root / OLDER)
    (root / TRACKER).write_text("10")
    accepted("inspect", root)


@pytest.mark.parametrize("text", ["4000", "9" * 30, "-3", "", None])
@pytest.mark.parametrize("make", [legacy, distributed])
def test_a_tracker_that_points_at_nothing(
    tmp_path: Path, make: Callable[[Path], Path], text: str | None
) -> None:
    root = make(tmp_path)
    (root / TRACKER).unlink() if text is None else (root / TRACKER).write_text(text)
    assert hint_of(root) == (
        f"the newest complete iteration is 30: give {root / NEWER}, or --iteration 30 to a command "
        f"that has it, or write 30 into {TRACKER}"
    )
    accepted("inspect", root, "--iteration", 30)


def test_also_where_an_iteration_is_asked_for_or_its_folder_is_given(tmp_path: Path) -> None:
    root = legacy(tmp_path)
    assert "the newest complete iteration is 30" in hint_of(root, 4000)
    shutil.rmtree(root / NEWER / "mp_rank_01")
    assert "the newest complete iteration is 10" in hint_of(root, 30)
    assert "the newest complete iteration is 10" in hint_of(root / NEWER)
    shutil.rmtree(root / NEWER)
    assert "the newest complete iteration is 10" in hint_of(root / NEWER)  # is not there
    (root / NEWER).mkdir()
    assert "the newest complete iteration is 10" in hint_of(root / NEWER)  # is empty
    assert "the newest" not in hint_of(root / "elsewhere")


def test_what_is_wrong_with_all_of_them_sends_nobody_to_another(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    for iteration in (10, 30):
        make_checkpoint(tmp_path, config, iteration=iteration, num_experts=8)
    assert "newest" not in hint_of(tmp_path)


def test_a_release_is_named_where_there_is_no_number(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", iteration=None)
    (tmp_path / TRACKER).write_text("30")
    assert hint_of(tmp_path) == (
        f"the release is complete: give {tmp_path / 'release'}, or write release into {TRACKER}"
    )


# --- trackers and folders that are none


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 100 << 30)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (huge, rf"{TRACKER}: found .* and 107374182336 bytes more, wanted a number or 'release'"),
        (Path.mkdir, f"{TRACKER}: is a folder, wanted a file"),
        (os.mkfifo, f"{TRACKER}: is not a regular file"),
        (lambda path: path.write_bytes(bytes(range(40))), f"{TRACKER}: found .*, wanted a number"),
        (lambda path: path.write_text("-10"), f"{TRACKER}: found '-10', wanted a number"),
        (lambda path: path.write_text("1" * 50), f"{TRACKER}: found '1+', wanted a number"),
        (lambda path: path.write_text(""), f"{TRACKER}: found '', wanted a number"),
        (lambda path: path.symlink_to(path), f"{TRACKER}: is a loop of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), f"{TRACKER}: does not exist"),
        (lambda path: path.symlink_to("/dev/zero"), f"{TRACKER}: is not a regular file"),
    ],
)
def test_a_tracker_that_is_none(tmp_path: Path, make: Change, says: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root / TRACKER)
    refused(3, f"error: {re.escape(str(root))}/{says}", "inspect", root, place=tmp_path / "other")


@pytest.mark.parametrize(
    "make",
    [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda p: p.symlink_to(p)],
)
def test_a_stray_that_is_called_an_iteration(tmp_path: Path, make: Change) -> None:
    root = legacy(tmp_path)
    make(root / "iter_0000040")
    accepted("inspect", root)
    (root / TRACKER).write_text("40")
    with pytest.raises(BadCheckpointError, match="iter_0000040: is no folder") as caught:
        open_checkpoint(root)
    assert "the newest complete iteration is 30" in caught.value.hint


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, says in (("loop", "loop of"), ("file", "no such"), ("x" * 300, "too long")):
        with pytest.raises(BadCheckpointError, match=says):
            iteration_folder(tmp_path / name)


def test_what_looks_complete(tmp_path: Path) -> None:
    root = legacy(tmp_path)
    assert [folder.name for folder in others(root, None)] == [NEWER, OLDER]
    assert [folder.name for folder in others(root, root / NEWER)] == [OLDER]
    shutil.copytree(root / OLDER, root / "iter_0000020")
    (root / "iter_0000020/mp_rank_00/model_optim_rng.pt").unlink()
    assert not looks_complete(root / "iter_0000020")
    assert not looks_complete(root / TRACKER)
    assert not looks_complete(root)
