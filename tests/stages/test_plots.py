"""A picture of runs: what it shows is computed apart from drawing, and drawn the same each time."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted, flmgrow, refused
from drawn_runs import stage_of, step, write_run
from hypothesis import example, given
from hypothesis import strategies as st
from sampling import first, sample
from training_runs import write_records

from flmgrow.model.masks import Dimension
from flmgrow.stages.curves import RunCurves, Spent, curves, read_runs
from flmgrow.stages.drawing import COLOURS, KINDS
from flmgrow.stages.frames import MOST_POINTS, loss_range, thinned, x_range
from flmgrow.stages.plots import Look, picture, shortened, tokens_text
from flmgrow.stages.smoothing import smooth
from flmgrow.trainer.metrics.records import Measured, ValidationRecord

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stages = [stage_of("small", 1, 40), stage_of("large", 41, 30, masked=10)]
    return write_run(tmp_path / "run", stages)


def test_stages_ramps_and_validation_are_told_apart(run: Path) -> None:
    ((small, large),) = [each.stages for each in read_runs([run])]
    assert (small.name, large.name) == ("small", "large")
    assert small.training.loss.tolist() == [5.0 / n for n in range(1, 41)]
    assert large.begin == Spent(256 * 40, 1000 * 1600)
    assert small.ramps == ()
    assert large.ramps == ((Spent(256 * 41, 1000 * 41**2), Spent(256 * 50, 1000 * 50**2)),)
    assert large.validation.tokens.tolist() == [256 * 70]
    assert large.validation.loss.tolist() == [pytest.approx(5.1 / 70)]


def test_folders_are_read_in_their_order(tmp_path: Path) -> None:
    stages = [stage_of(f"s{number}", 1 + 5 * number, 5) for number in range(12)]
    (found,) = read_runs([write_run(tmp_path / "run", stages)])
    assert [stage.name for stage in found.stages] == [f"s{number}" for number in range(12)]


def test_a_stage_and_a_file_are_runs_too(run: Path) -> None:
    for path in (run / "02-large", run / "02-large" / "metrics.jsonl"):
        (found,) = read_runs([path])
        assert [stage.name for stage in found.stages] == ["large"]
        assert found.name == "02-large"


def test_losses_that_are_not_finite_are_left_out() -> None:
    records = [step(1, 3.0, "a", {}), step(2, float("nan"), "a", {}), step(3, 2.0, "a", {})]
    (found,) = curves([records], "here")
    assert found.training.loss.tolist() == [3.0, 2.0]


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=60),
    st.integers(0, 20),
    st.floats(-2, 2),
    st.floats(-3, 3),
)
def test_smoothing_keeps_straight_lines_and_adds(
    values: list[float], half: int, slope: float, level: float
) -> None:
    """A straight line passes as it is, up to its ends; and the smoothed sum is the sum."""
    places = np.arange(len(values), dtype=np.float64)
    line = slope * places + level
    assert smooth(line, half) == pytest.approx(line, abs=1e-8)
    noisy = np.array(values)
    assert smooth(noisy + line, half) == pytest.approx(smooth(noisy, half) + line, abs=1e-8)


@given(st.integers(1, 40), st.integers(1, 12))
def test_smoothing_is_a_line_fitted_to_neighbours(seed: int, half: int) -> None:
    values = np.random.default_rng(seed).normal(size=50)
    found = smooth(values, half)
    for place in range(50):
        low, high = max(0, place - half), min(50, place + half + 1)
        slope, level = np.polyfit(np.arange(low, high), values[low:high], 1)
        assert found[place] == pytest.approx(slope * place + level, abs=1e-8)


@given(st.integers(MOST_POINTS + 1, 20_000), st.booleans(), st.integers(0, 100))
def test_thinning_keeps_the_extremes(count: int, log: bool, seed: int) -> None:
    x = np.arange(1.0, count + 1)
    y = np.random.default_rng(seed).normal(size=count)
    x_few, y_few = thinned(x, y, log=log)
    assert len(x_few) == len(y_few) <= MOST_POINTS
    assert (y_few.min(), y_few.max()) == (y.min(), y.max())
    assert (np.diff(x_few) >= 0).all()


def test_the_first_losses_may_leave_the_frame(run: Path) -> None:
    runs = read_runs([run])
    low, high = loss_range(runs, whole=False)
    assert low < 5.0 / 70 < high < 5.0
    assert loss_range(runs, whole=True)[1] > 4.0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1500, "1.5K"), (5e8, "500M"), (1.5e9, "1.5B"), (2e12, "2T")]
)
def test_tokens_have_units(count: float, text: str) -> None:
    assert tokens_text(count) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", sample([False, True], False))
def test_the_same_run_is_the_same_picture(run: Path, kind: str, log: bool) -> None:
    runs = read_runs([run])
    once = picture(runs, kind, Look(log))
    assert once == picture(runs, kind, Look(log))
    assert once.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert once != picture(runs, kind, Look(log, "a title"))


def test_a_picture_names_its_stages(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "loss.svg"
    assert accepted("plot", run, "--out", out, "--title", "how it went").out == f"{out}\n"
    text = out.read_text()
    words = ("small", "large", "how it went", "Tokens", "FLOPs", "validation", "masks below 1")
    for word in words:
        assert f">{word}" in text or word in text, word


def test_runs_are_compared_by_name(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [stage_of("alone", 1, 60)])
    out = tmp_path / "compared.svg"
    accepted("plot", run, other, "--out", out)
    assert ">run</text>" in out.read_text()
    assert ">other</text>" in out.read_text()


def test_the_picture_lies_in_the_run_if_nothing_is_said(run: Path) -> None:
    assert accepted("plot", run).out == f"{run / 'loss.png'}\n"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert accepted("plot", run / "01-small" / "metrics.jsonl").code == 0
    assert (run / "01-small" / "loss.png").is_file()


def refusals(run: Path, tmp_path: Path) -> dict[str, tuple[list[Any], int, str]]:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(json.dumps(asdict(step(1, 1.0, "a", {}))) + "\nnonsense\n")
    return {
        "another kind": ([run, "--out", tmp_path / "x.bmp"], 2, "unknown kind of picture"),
        "no run": ([tmp_path / "missing"], 2, "no metrics in it"),
        "nothing told yet": ([empty], 3, "holds no loss of any step"),
        "damaged": ([damaged], 3, "damaged.jsonl:2: holds no record"),
        "too many": ([run] * 7, 2, "7 runs, wanted at most 6"),
    }


@pytest.mark.parametrize(
    "case", ["another kind", "no run", "nothing told yet", "damaged", "too many"]
)
def test_what_cannot_be_drawn_is_refused(case: str, run: Path, tmp_path: Path) -> None:
    words, code, message = refusals(run, tmp_path)[case]
    outcome = flmgrow("plot", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.rglob("loss.png"))


def test_matplotlib_is_named_where_it_is_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    outcome = flmgrow("plot", run)
    assert outcome.code == 2
    assert "hint: pip install 'flmgrow[plot]'" in outcome.err


@pytest.mark.parametrize(
    "error", ["RuntimeError('no luck')", "ImportError('no luck')", r"ValueError('no\nluck')"]
)
def test_an_import_that_fails_is_told(
    error: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib is there, and reading its settings, or loading its compiled parts, fails."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "matplotlib.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = error.partition("(")[0] + r": no(\\n| )luck"
    pattern = rf"^error: the package matplotlib cannot be imported: {found}\nhint: .*MPLBACKEND"
    refused(2, pattern, "plot", run, place=run)


@pytest.mark.parametrize("loss", [1e308, -1e308, float("nan"), float("inf")])
def test_losses_that_nothing_can_be_compared_with_are_left_out(loss: float, tmp_path: Path) -> None:
    clean = stage_of("a", 1, 9)
    wild: list[Measured] = [step(10, loss, "a", {}), ValidationRecord(10, 2560, 100_000, loss, "a")]
    file = write_records(tmp_path / "metrics.jsonl", [*clean, *wild])
    outcome = accepted("plot", file)
    assert outcome.out == f"{tmp_path / 'loss.png'}\n"
    assert outcome.err == f"note: {file}: left out 2 losses, not finite or beyond 1e+09\n"
    (found,) = read_runs([file])
    ((stage,), (undisturbed,)) = (found.stages, curves([clean], "here"))
    assert stage.smoothed.tolist() == undisturbed.smoothed.tolist()
    assert stage.validation.loss.tolist() == undisturbed.validation.loss.tolist()
    only = write_records(tmp_path / "only.jsonl", wild)
    refused(3, "only.jsonl: holds no loss of .* can be drawn", "plot", only, place=tmp_path)


@pytest.mark.parametrize("count", ["tokens", "flops"])
@pytest.mark.parametrize(
    ("value", "found"),
    [(10**400, r"more than 1e\+40"), (-1, "fewer than 0")],
    ids=["too many", "negative"],
)
def test_counts_that_no_run_has_are_refused(
    count: str, value: int, found: str, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {count: value}
    records = [step(1, 2.0, "a", {}), replace(step(2, 2.0, "a", {}), **changed)]
    file = write_records(tmp_path / "metrics.jsonl", records)
    pattern = f"metrics.jsonl:2: {count}: found {found}, wanted 0 to"
    refused(3, pattern, "plot", file, place=tmp_path)


NAMES = {
    "mathematics": r"$\frac{$",
    "more of it": r"$\badmacro{x$",
    "other script": "\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-6587}",
    "right to left": "\N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}\N{DEVANAGARI LETTER KA}",
    "picture": "\N{ROCKET}",
    "hidden": "_hidden",
    "control": "a\tb\x1b[31m",
    "long": "W" * 120,
}


@pytest.mark.parametrize("name", first(3, NAMES.values()), ids=NAMES)
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    """Of stages and runs, alone and compared; nothing is said about it, and nothing fails."""
    stages = [stage_of(name, 1, 3), stage_of(f"{name}2", 4, 3)]
    run = write_run(tmp_path / name, stages)
    other = write_run(tmp_path / f"{name}2", stages)
    for kind, runs in (("png", [run]), ("pdf", [run]), ("svg", [run, other])):
        out = tmp_path / f"out.{kind}"
        outcome = accepted("plot", *runs, "--title", name, "--out", out)
        assert (outcome.out, outcome.err) == (f"{out}\n", "")
    if len(name) < 20 and name.isprintable():
        # Over two panels two stages of each of two runs, then both runs, and the title.
        text = (tmp_path / "out.svg").read_text()
        assert (text.count(f">{name}</text>"), text.count(f">{name}2</text>")) == (6, 5)
    elif name.isprintable():
        assert "\N{HORIZONTAL ELLIPSIS}" in (tmp_path / "out.svg").read_text()


def test_a_picture_full_of_long_names_keeps_its_curves(tmp_path: Path) -> None:
    """Else matplotlib warns that no place is left for them, which is an error here."""
    names = ["W" * 100 + str(number) for number in range(6)]
    stages = [stage_of(name, 1 + 3 * number, 3) for number, name in enumerate(names[:3])]
    runs = [write_run(tmp_path / name, stages) for name in names]
    title = "\n".join(names[:3])
    assert accepted("plot", *runs, "--title", title).err == ""
    refused(2, "the title has 4 lines", "plot", *runs, "--title", f"{title}\n4", place=tmp_path)


@given(st.text(max_size=40), st.integers(1, 20))
def test_shortened_text_has_an_ellipsis(text: str, most: int) -> None:
    short = shortened(text, most)
    assert len(short) <= most
    assert short.isprintable()
    assert short == text or "\N{HORIZONTAL ELLIPSIS}" in short or not text.isprintable()


def test_the_ends_of_a_long_name_stay() -> None:
    assert shortened("one-long-name", 7) == "one\N{HORIZONTAL ELLIPSIS}ame"
    assert shortened("one-long-name", 13) == "one-long-name"


BARE: dict[str, list[Measured]] = {
    "one step": [step(1, 3.0, "a", {})],
    "one step with masks": [step(1, 3.0, "a", {Dimension.FFN: 0.5})],
    "equal counts": [replace(step(n, 3.0 / n, "a", {}), tokens=7, flops=7) for n in range(1, 4)],
    "equal losses": [step(n, 3.0, "a", {}) for n in range(1, 4)],
    "losses almost equal": [step(1, 3.0, "a", {}), step(2, np.nextafter(3.0, 4), "a", {})],
    "nothing spent": [replace(step(n, 3.0, "a", {}), tokens=0, flops=0) for n in range(1, 4)],
    "begins at nothing": [
        replace(step(1, 3.0, "a", {Dimension.FFN: 0.5}), tokens=0, flops=0),
        ValidationRecord(1, 0, 0, 3.0, "a"),
        *stage_of("b", 2, MOST_POINTS + 1),
    ],
    "much": [replace(step(n, 3.0, "a", {}), tokens=n * 10**39) for n in range(1, 10)],
    "falls": [step(n, 3.0, "a", {}) for n in range(MOST_POINTS + 1, 0, -1)],
}


@pytest.mark.parametrize("log", sample([False, True], False))
@pytest.mark.parametrize("records", BARE.values(), ids=BARE)
def test_little_is_drawn_too(records: list[Measured], log: bool, tmp_path: Path) -> None:
    file = write_records(tmp_path / "metrics.jsonl", records[:1])
    file.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    outcome = accepted("plot", file, *["--log-x"] * log)
    assert (outcome.out, outcome.err) == (f"{tmp_path / 'loss.png'}\n", "")


@given(st.lists(st.floats(0, 1e40), min_size=1, max_size=5), st.booleans())
@example([5e-324], True)
def test_an_axis_shows_all_it_can(values: list[float], log: bool) -> None:
    low, high = x_range(np.array(values), log=log)
    assert low < high
    assert not log or low > 0
    assert all(low <= value <= high for value in values if value or not log)


def test_a_step_alone_is_seen() -> None:
    """In the middle of the picture, as a dot: a line of one point has no length."""
    assert x_range(np.array([100.0]), log=False) == pytest.approx((49, 152))
    assert x_range(np.array([100.0]), log=True) == pytest.approx((10, 1100))
    dots = []
    for count in (1, 2):
        records = [step(number, 3.0, "a", {}) for number in range(1, count + 1)]
        drawn = picture([RunCurves("a", curves([records], ""))], "svg", Look()).decode()
        dots.append(drawn.lower().count(f'style="fill: {COLOURS[0].lower()}'))
    assert dots == [2, 0]  # one in each panel


def test_a_place_that_cannot_be_written_is_refused_beforehand(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for out, pattern in {
        tmp_path / "nosuch" / "dir" / "a.png": "nosuch/dir is no folder.*hint: make the folder",
        run / "01-small" / "metrics.jsonl" / "a.png": "metrics.jsonl is no folder",
        folder: "folder.png: is a folder.*hint: name a picture in it.*folder.png/loss.png",
        tmp_path: "is a folder, wanted the file of a picture",
    }.items():
        refused(2, pattern, "plot", run, "--out", out, place=tmp_path)
    (run / "loss.png").mkdir()
    refused(2, "loss.png: is a folder", "plot", run, place=tmp_path)


def test_nothing_is_on_stderr_of_a_process(tmp_path: Path) -> None:
    """What pytest may have caught is printed there: warnings, and the log of matplotlib."""
    run = write_run(tmp_path / NAMES["other script"], [[step(1, 3.0, NAMES["other script"], {})]])
    words = [sys.executable, "-m", "flmgrow", "plot", str(run), "--log-x"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=True)
    assert (done.stdout, done.stderr) == (f"{run / 'loss.png'}\n", "")
