"""A run that is stopped leaves no half-made output, and the same command goes on with it."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import accepted, check_lines, flmgrow, names, refused, stop_after
from damage import contents, rank_files
from pico import CONFIGS, even, make_checkpoint
from repository import ROOT
from sampling import first

from flmgrow.storage import durable
from flmgrow.storage.output import OutputFolder
from flmgrow.surgery.execute import Executor

GROW = ("--ffn-hidden-size", "24", "--method", "copy")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def disk_full() -> None:
    with durable.storage_errors(Path("out/file"), "writing"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def data_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (*rank_files(folder), folder / "flmgrow.json")]


# --- signals

INTERRUPTED = """
import os, sys
from pathlib import Path
import flmgrow.cli
from flmgrow.surgery.execute import Executor
write, count = Executor._write, 0
def write_some(self, *arguments):
    global count
    if count == 2:
        os.kill(os.getpid(), {signal})
    count += 1
    write(self, *arguments)
Executor._write = write_some
flmgrow.cli.main()
"""

WHILE_STARTING = """
import os, sys
import flmgrow.cli
class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), {signal})
sys.meta_path.insert(0, Finder())
flmgrow.cli.main()
"""

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def run_child(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.parametrize(("number", "code"), first(1, SIGNALS))
def test_an_interrupted_run_goes_on_with_the_same_command(
    source: Path, out: Path, number: signal.Signals, code: int
) -> None:
    before = contents(source)
    script = INTERRUPTED.format(signal=int(number))
    child = run_child(script, "expand", source, out, *GROW)
    assert child.returncode == code, child.stderr
    check_lines(child.stderr, "error: interrupted\nhint: the same command resumes")
    assert names(out.parent) == [".out.flmgrow", "source"]
    accepted("expand", source, out, *GROW)
    accepted("expand", source, out.parent / "whole", *GROW)
    assert names(out.parent) == ["out", "source", "whole"]
    assert data_of(out) == data_of(out.parent / "whole")
    assert contents(source) == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_run_interrupted_while_it_starts_says_so_in_one_line(
    source: Path, out: Path, number: signal.Signals, code: int
) -> None:
    script = WHILE_STARTING.format(signal=int(number))
    child = run_child(script, "expand", source, out, *GROW)
    assert child.returncode == code, child.stderr
    check_lines(child.stderr, "error: interrupted")
    assert names(out.parent) == ["source"]


def test_a_run_stopped_before_its_first_file_leaves_nothing(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    stop_after(0, monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        flmgrow("expand", source, out, *GROW)
    assert names(out.parent) == ["source"]


# --- the disk


def test_too_little_space_is_found_before_anything_is_written(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=1, f_frsize=512, f_blocks=1000)
    monkeypatch.setattr("flmgrow.storage.durable.os.statvfs", lambda _: full)
    says = "out: 512 bytes are free, [0-9]+ are needed.*free some space"
    refused(4, says, "expand", source, out, *GROW, place=out.parent)


def test_a_disk_that_fills_up_leaves_what_can_be_gone_on_with(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch, disk_full)
        outcome = flmgrow("expand", source, out, *GROW)
    assert outcome.code == 4
    check_lines(outcome.err, "writing failed: No space left.*free some space, then run the same")
    assert names(out.parent) == [".out.flmgrow", "source"]
    written: list[str] = []
    monkeypatch.setattr(Executor, "_write", _listing(Executor._write, written))
    accepted("expand", source, out, *GROW)
    assert len(written) == 1
    accepted("verify", source, out)


def _listing(write: Callable[..., None], written: list[str]) -> Callable[..., None]:
    def listed(self: Executor, pool: Any, file: Any, folder: Any) -> None:
        written.append(file.path)
        write(self, pool, file, folder)

    return listed


@pytest.mark.parametrize(
    ("folder", "code", "says"),
    [
        ("/proc/out", 4, "creating failed"),
        ("none/out", 2, "none: no such folder, wanted for out"),
        ("source/iter_0000030/mp_rank_00_000/model_optim_rng.pt/out", 2, "lies inside|no such"),
        ("x" * 300, 4, "File name too long"),
        ("x" * 250, 4, "File name too long"),
        ("nul\0", 2, "null byte"),
        (".", 2, "lies inside|not a name"),
    ],
    ids=["no write access", "no parent", "file as parent", "long", "long with ours", "NUL", "dot"],
)
def test_an_output_that_cannot_be_made_is_refused(
    source: Path, folder: str, code: int, says: str
) -> None:
    place = source.parent
    refused(code, says, "expand", source, place / folder, *GROW, place=place)


def test_a_name_that_is_no_text_is_accepted_and_shown_escaped(source: Path) -> None:
    out = source.parent / os.fsdecode(b"out\xff\x1b")
    found = accepted("expand", source, out, *GROW)
    assert found.out.isascii()
    assert "\x1b" not in found.out
    accepted("verify", source, out)


# --- the output


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        Path.touch,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("source"),
    ],
    ids=["folder", "file", "dangling link", "link"],
)
def test_an_output_that_exists_is_never_touched(
    source: Path, out: Path, make: Callable[[Path], None]
) -> None:
    make(out)
    for command in (("expand", *GROW), ("reshard", "--tp", 1), ("expand", "--restart", *GROW)):
        name, *options = command
        refused(5, "out: already exists", name, source, out, *options, place=out.parent)


@pytest.mark.parametrize("output_name", ["source/out", "source", ".", "alias/out"])
def test_source_and_output_lie_apart(source: Path, output_name: str) -> None:
    (source.parent / "alias").symlink_to("source")
    place = source.parent
    says = "lies inside|already exists"
    outcome = flmgrow("expand", source, place / output_name, *GROW)
    assert outcome.code == (5 if output_name == "source" else 2)
    check_lines(outcome.err, says)
    assert names(place) == ["alias", "source"]


def test_two_runs_cannot_write_one_output(source: Path, out: Path) -> None:
    with OutputFolder(out, {"another": "plan"}):
        says = rf"out: another run \(pid {os.getpid()} on .*\) is writing it"
        refused(5, says, "expand", source, out, *GROW, place=out.parent)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seed", 1), "seed: 0 there, 1 here"),
        (("--tp", 1), "layout.tp: 2 there, 1 here"),
        (("--ffn-hidden-size", 28), "model.ffn: 24 there, 28 here"),
        (("--method", "zero"), "methods.ffn: .*copy.* there, .*zero.* here"),
        (("--dtype", "float32"), "dtype: null there, .*float32.* here"),
        (("--replicated", "rank0"), "options.replicated: .*check.* there, .*rank0.* here"),
    ],
)
def test_a_half_done_run_is_not_mixed_with_another(
    source: Path,
    out: Path,
    options: tuple[object, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, patch, disk_full)
        assert flmgrow("expand", source, out, *GROW).code == 4
    says = f"half-done run of another plan: .*{says}.*--restart"
    refused(5, says, "expand", source, out, *GROW, *options, place=source)
    assert names(out.parent) == [".out.flmgrow", "source"]
    accepted("expand", source, out, *GROW, *options, "--restart")
    accepted("verify", source, out)
    assert names(out.parent) == ["out", "source"]


def test_a_half_done_run_is_not_mixed_with_another_source(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, patch, disk_full)
        assert flmgrow("expand", source, out, *GROW).code == 4
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    other = make_checkpoint(source.parent / "other", "llama", layout, seed=1)
    says = "half-done run of another plan: source: .* there, .* here"
    refused(5, says, "expand", other, out, *GROW, place=source)


@pytest.mark.parametrize("command", ["run configs/flm-101b.yaml --dry-run", "--help"])
def test_a_reader_that_has_enough_is_no_failure(command: str) -> None:
    """As with ``| head -1``: the exit code says nothing was wrong, and stderr is silent."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flmgrow", *command.split()],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert (process.wait(300), told) == (0, b"")
