"""What the trials of a search tell: the best point, how flat it is there, and what is no word."""

from dataclasses import replace
from math import inf

import pytest
from searches import PEAK, STD

from flmgrow.searching.report import best_at, report_of, sections_of
from flmgrow.searching.request import GridPoint, Search, SearchFile, Trial
from flmgrow.searching.trials import TrialOutcome
from flmgrow.searching.wording import markdown
from flmgrow.stages.trial_folder import TrialState


def outcomes(losses: dict[tuple[float, float], list[float]]) -> tuple[Search, list[TrialOutcome]]:
    """Return a search of two axes, and how its trials ended: infinite losses diverged."""
    file = SearchFile.model_validate({
        "stage": "proxy.yaml",
        "grid": {PEAK: sorted({peak for peak, _ in losses}), STD: sorted({s for _, s in losses})},
    }, strict=False)  # fmt: skip
    found: list[TrialOutcome] = []
    for (peak, std), own in losses.items():
        for seed, loss in enumerate(own):
            trial = Trial(f"{peak}-{std}-{seed}", GridPoint({PEAK: peak, STD: std}), seed, None)  # type: ignore[arg-type]
            state = TrialState.DIVERGED if loss == inf else TrialState.DONE
            found.append(TrialOutcome(trial, state, 10, loss))
    return Search(file, [each.trial for each in found]), found


def test_the_best_point_and_what_is_as_good() -> None:
    losses = {
        (peak, std): [2.0 + 0.1 * abs(i - 2) + 0.003 * abs(j - 1) + 0.001 * seed
                      for seed in (0, 1)]
        for i, peak in enumerate((1.0, 2.0, 3.0, 4.0))
        for j, std in enumerate((0.1, 0.2, 0.3))
    }  # fmt: skip
    losses[4.0, 0.3] = [inf, 2.0]
    report = report_of(*outcomes(losses))
    (best,) = report.best
    assert best.result.point.settings == {PEAK: 3.0, STD: 0.2}
    assert best.result.loss == pytest.approx(2.0005)
    # Two standard errors of a difference over two seeds are 0.0014: no other value is within.
    assert best.intervals == {PEAK: [3.0], STD: [0.2]}
    assert report.axes == [PEAK, STD]
    assert report.count(TrialState.DIVERGED) == 1
    assert report.results[-1].loss == inf
    assert sections_of(best.result.point.settings) == {
        "learning_rate": {"peak": 3.0}, "training": {"init_std": 0.2}
    }  # fmt: skip


def test_noise_is_that_of_all_points() -> None:
    """The best point's own seeds agree by chance; those of all points together tell better."""
    spreads = {1.0: 0.02, 2.0: 0.0, 3.0: 0.02, 4.0: 0.02}
    means = {1.0: 2.3, 2.0: 2.0, 3.0: 2.01, 4.0: 2.2}
    losses = {(peak, 0.1): [means[peak] - spreads[peak], means[peak] + spreads[peak]]
              for peak in means}  # fmt: skip
    (best,) = report_of(*outcomes(losses)).best
    assert best.result.error == 0.0
    pooled = 3 * 2 * 0.02**2 / 4  # three points with a variance of 2 * 0.02^2 on one degree each
    assert best.noise == pytest.approx(2 * (2 * pooled / 2) ** 0.5)
    assert best.intervals[PEAK] == [2.0, 3.0]
    # Where all seeds agree, nothing else is as good.
    (exact,) = report_of(*outcomes({key: [sum(own) / 2] * 2 for key, own in losses.items()})).best
    assert exact.intervals[PEAK] == [2.0]


@pytest.mark.parametrize(("best", "told"), [(1.0, "smallest"), (2.0, None), (3.0, "largest")])
def test_a_best_value_at_the_end_of_its_axis_is_told(best: float, told: str | None) -> None:
    losses = {(peak, 0.1): [2.0 + abs(peak - best)] for peak in (1.0, 2.0, 3.0)}
    report = report_of(*outcomes(losses))
    assert report.best[0].edges == ({PEAK: told} if told else {})
    words = f"the best learning_rate.peak is the {told} that was tried: widen the grid there"
    assert (words in markdown(report)) == (told is not None)


def test_what_was_stopped_early_is_compared_with_nothing() -> None:
    """Its loss is of another step: not along an axis, not in the picture, not in the table."""
    losses = {(1.0, 0.1): [2.0], (2.0, 0.1): [2.1], (3.0, 0.1): [1.9], (1.0, 0.2): [1.0]}
    search, found = outcomes(losses)
    stopped = [
        replace(each, state=TrialState.STOPPED, steps=3) if each.loss < 2 else each
        for each in found
    ]
    report = report_of(search, stopped)
    assert [each.loss for each in report.results] == [2.0, 2.1, 1.0, 1.9]
    assert report.best[0].result.point.settings == {PEAK: 1.0, STD: 0.1}
    assert best_at(report.results, PEAK, 3.0) == inf
    assert best_at(report.results, PEAK, 1.0) == 2.0
    assert report.axes == [PEAK, STD]  # along the other one nothing is left to compare


def test_one_seed_is_as_good_within_half_a_per_cent() -> None:
    losses = {(peak, 0.1): [loss] for peak, loss in ((1.0, 2.02), (2.0, 2.009), (3.0, 2.0),
                                                     (4.0, 2.005), (5.0, 2.5))}  # fmt: skip
    (best,) = report_of(*outcomes(losses)).best
    assert best.intervals[PEAK] == [2.0, 3.0, 4.0]


def test_only_what_diverged_is_drawn_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample leaves places of the grid blank."""
    from flmgrow.searching import picture

    written: list[tuple[float, float, str]] = []

    def heard(_: object, x: float, y: float, text: str, **__: object) -> None:
        written.append((x, y, text))

    monkeypatch.setattr("matplotlib.axes.Axes.text", heard)
    losses = {(1.0, 0.1): [2.0], (2.0, 0.1): [inf], (1.0, 0.2): [2.5]}
    picture.picture(report_of(*outcomes(losses)), "svg")
    assert sorted(text for _, _, text in written) == ["2.000", "2.500", "diverged"]
