"""Laws of loss, fitted to points.

A law of sizes at one step and on one kind of data is L(N) = a N^b + c (Yao et al., 2023, section
3); with tokens it is L(N, D) = A N^-alpha + B D^-beta + E (Hoffmann et al., 2022, equation 10).
Both are fitted to the logarithm of the loss by Huber's loss, which a single run that went wrong
cannot drag away, from many starts, because the surface has several valleys. Sizes and tokens are
taken relative to their geometric means: the constants of the fit are then of order 1, and do not
depend on the unit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import exp, inf
from typing import Any

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.arrays import FloatArray
from flmgrow.prediction.packages import scipy
from flmgrow.prediction.points import RunPoint
from flmgrow.text import Found, Text

HUBER = 1e-3
"""In units of log loss: residuals above it count linearly (Hoffmann et al., 2022, appendix D.3)."""

FEWEST_SIZES = 4

TOGETHER = 0.98
"""Correlation of log size and log tokens above which no law of both is fitted."""

_SMALL = 1e-12
LARGEST_POWER = 300.0
"""Of e: what is beyond it is as good as infinite, and overflows."""


@dataclass(frozen=True)
class Form:
    """The form of a law. ``terms`` are the decaying powers in it: of sizes, or of tokens, too.

    Its parameters are log coefficient and log exponent of each term, and the log of what is left.
    """

    name: str
    formula: str
    terms: int
    least: int

    @property
    def parameters(self) -> int:
        """How many numbers are fitted."""
        return 2 * self.terms + 1

    def losses(self, values: FloatArray, inputs: FloatArray) -> FloatArray:
        """Return the losses (points) for ``inputs`` (terms, points), logarithms relative to the
        law's centre.
        """
        result: FloatArray = self._terms(values, inputs).sum(0)
        return result

    def slopes(self, values: FloatArray, inputs: FloatArray) -> FloatArray:
        """Return the derivatives (points, parameters) of the log loss."""
        parts = self._terms(values, inputs)
        by_exponent = -np.exp(values[self.terms : -1, None]) * inputs * parts[:-1]
        result: FloatArray = (np.vstack((parts[:-1], by_exponent, parts[-1:])) / parts.sum(0)).T
        return result

    def _terms(self, values: FloatArray, inputs: FloatArray) -> FloatArray:
        """Return the summands of the losses (terms + 1, points), what is left last."""
        exponents = np.exp(values[self.terms : -1, None])
        powers = values[: self.terms, None] - exponents * inputs
        decaying = np.exp(np.clip(powers, -LARGEST_POWER, LARGEST_POWER))  # a step may overshoot
        return np.vstack((decaying, np.full(inputs.shape[1:], np.exp(values[-1]))))


SIZES = Form("sizes", "L(N) = a N^b + c", 1, 4)
SIZES_AND_TOKENS = Form("sizes and tokens", "L(N, D) = A N^-alpha + B D^-beta + E", 2, 6)
FORMS = {form.name: form for form in (SIZES, SIZES_AND_TOKENS)}


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law: the ``values`` of its form's parameters, around ``centre``.

    ``spread`` is the standard deviation of the residuals in log loss.
    """

    form: Form
    values: FloatArray
    centre: FloatArray
    spread: float

    def loss(self, parameters: float, tokens: float = 1.0) -> float:
        """Return the loss of a model of that size, after so many tokens if the law knows them."""
        inputs = np.log([[parameters], [tokens]][: self.form.terms]) - self.centre[:, None]
        return float(self.form.losses(self.values, inputs)[0])

    def least(self, parameters: float) -> float:
        """Return the loss that a model of that size never comes below. For a law that knows
        tokens.
        """
        alpha = np.exp(self.values[self.form.terms])
        size = float(self.values[0] - alpha * (np.log(parameters) - self.centre[0]))
        return exp(self.values[-1]) + exp(min(size, LARGEST_POWER))

    def tokens_for(self, parameters: float, loss: float) -> float:
        """Return after how many tokens a model of that size has this loss; infinite if never.

        For a law that knows tokens.
        """
        left = loss - self.least(parameters)
        if left <= 0:
            return inf
        beta = np.exp(self.values[self.form.terms + 1])
        logarithm = float(self.centre[1] + (self.values[1] - np.log(left)) / beta)
        return exp(logarithm) if logarithm < LARGEST_POWER else inf

    @cached_property
    def constants(self) -> dict[str, float]:
        """The constants of the formula, in parameters and tokens."""
        terms = self.form.terms
        exponents = np.exp(self.values[terms:-1])
        scales = np.exp(self.values[:terms] + exponents * self.centre)
        left = float(np.exp(self.values[-1]))
        if terms == 1:
            return {"a": float(scales[0]), "b": -float(exponents[0]), "c": left}
        return {
            "A": float(scales[0]),
            "alpha": float(exponents[0]),
            "B": float(scales[1]),
            "beta": float(exponents[1]),
            "E": left,
        }


def form_for(points: Sequence[RunPoint]) -> Form:
    """Return the form that points allow: with tokens, if runs of three lengths or more are there.

    Raises:
        UsageError: For runs of two lengths: a law of sizes needs one.
    """
    lengths = sorted({point.tokens for point in points})
    if len(lengths) == 1:
        return SIZES
    if len(lengths) == 2:
        raise UsageError(
            f"the runs end after {lengths[0]:,.0f} and {lengths[1]:,.0f} tokens",
            "compare them at one step, or give runs of at least three lengths",
        )
    return SIZES_AND_TOKENS


def check_enough(points: Sequence[RunPoint], form: Form) -> None:
    """Raise UsageError for fewer runs, or fewer sizes, than a law can be trusted with."""
    sizes = len({point.parameters for point in points})
    if sizes < FEWEST_SIZES or len(points) < form.least:
        raise UsageError(
            Text(Found(f"{len(points)} runs of {sizes} sizes")),
            "train more small models: a law through fewer fits anything",
            wanted=f"at least {form.least} runs of {FEWEST_SIZES} sizes for {form.formula}",
        )
    if form.terms > 1 and _go_together(points):
        raise UsageError(
            "the larger runs are the longer ones, always: what size does and what tokens do "
            "cannot be told apart",
            "train some of the sizes for other lengths, too",
        )


def _go_together(points: Sequence[RunPoint]) -> bool:
    """Whether tokens follow from sizes, as on a straight line in their logarithms."""
    inputs, _ = _arrays(points, SIZES_AND_TOKENS)
    correlations: FloatArray = np.atleast_2d(np.corrcoef(inputs))
    return bool(abs(correlations[0, 1]) > TOGETHER)


def fit(points: Sequence[RunPoint], form: Form) -> Law:
    """Return the law of that form that fits best. There must be no fewer points than constants."""
    inputs, losses = _arrays(points, form)
    centre: FloatArray = inputs.mean(1)
    inputs = inputs - centre[:, None]
    found = min((_descend(form, start, inputs, losses) for start in _starts(form, losses)),
                key=lambda each: each.cost)  # fmt: skip
    values: FloatArray = found.x
    residuals = np.log(form.losses(values, inputs)) - np.log(losses)
    freedom = max(1, len(points) - form.parameters)
    return Law(form, values, centre, float(np.sqrt((residuals**2).sum() / freedom)))


def refit(law: Law, points: Sequence[RunPoint]) -> Law:
    """Return the law fitted to other points, from where it is."""
    inputs, losses = _arrays(points, law.form)
    found = _descend(law.form, law.values, inputs - law.centre[:, None], losses)
    return Law(law.form, found.x, law.centre, law.spread)


def prior() -> list[Law]:
    """Return published laws of size and tokens: Hoffmann et al. (2022, approach 3), and what
    Besiroglu et al. (2024) find in the same runs.
    """
    constants = ((406.4, 0.34, 410.7, 0.28, 1.69), (482.01, 0.3478, 2085.43, 0.3658, 1.8172))
    return [
        Law(SIZES_AND_TOKENS, np.log([a, b, alpha, beta, left]), np.zeros(2), 0.0)
        for a, alpha, b, beta, left in constants
    ]


def _arrays(points: Sequence[RunPoint], form: Form) -> tuple[FloatArray, FloatArray]:
    rows = [[point.parameters for point in points], [point.tokens for point in points]]
    return np.log(np.array(rows[: form.terms])), np.array([point.loss for point in points])


def _starts(form: Form, losses: FloatArray) -> list[FloatArray]:
    """Return where to begin: terms that decay slowly or fast, and take much of the loss or
    little.
    """
    starts = []
    for exponent, left in product((0.1, 0.3, 0.8), (0.3, 0.7, 0.95)):
        rest = float(losses.min()) * left
        share = max(float(np.median(losses)) - rest, _SMALL) / form.terms
        starts.append(
            np.array(
                [np.log(share)] * form.terms + [np.log(exponent)] * form.terms + [np.log(rest)]
            )
        )
    return starts


def _descend(form: Form, start: FloatArray, inputs: FloatArray, losses: FloatArray) -> Any:
    wanted = np.log(losses)
    return minimised(
        lambda values: np.log(form.losses(values, inputs)) - wanted,
        start,
        lambda values: form.slopes(values, inputs),
    )


def minimised(
    residuals: Callable[[FloatArray], FloatArray],
    start: FloatArray,
    slopes: Callable[[FloatArray], FloatArray],
) -> Any:
    """Return scipy's result (``x`` and ``cost``) of the least sum of Huber's loss of ``residuals``
    (points,) in log loss, from ``start`` (values,), with their derivatives ``slopes`` (points,
    values).

    Raises:
        UsageError: Without scipy.
    """
    return scipy("optimize").least_squares(
        residuals, start, slopes, loss="huber", f_scale=HUBER, bounds=(-50.0, 50.0), max_nfev=500
    )
