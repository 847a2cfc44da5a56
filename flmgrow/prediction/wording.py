"""Laws and forecasts as the rows that ``flmgrow predict`` shows."""

from flmgrow.model.wording import amount
from flmgrow.prediction.ending import StageEnd
from flmgrow.prediction.forecast import LEVEL, Forecast, Forecaster
from flmgrow.prediction.law import SIZES

Rows = list[tuple[str, str]]


def law_rows(found: Forecaster) -> Rows:
    """Return what was fitted to what, and what it would have said of the largest run."""
    sizes = [point.parameters for point in found.points]
    constants = ", ".join(f"{name} {value:.4g}" for name, value in found.law.constants.items())
    return [
        ("runs", f"{len(sizes)}, {_size(min(sizes))} to {_size(max(sizes))} parameters"),
        ("law", f"{found.law.form.formula}: {constants}"),
        ("residuals", f"{100 * found.law.spread:.2f} %"),
        ("largest", _left_out_text(found)),
    ]


def _left_out_text(found: Forecaster) -> str:
    left = found.left_out
    if left is None:
        return "not left out: without it there are fewer runs than constants"
    return (
        f"left out, {_size(left.parameters)} is foretold as {left.foretold:.4f}, and is "
        f"{left.loss:.4f}: {100 * left.error:+.2f} %"
    )


def forecast_row(found: Forecaster, forecast: Forecast) -> tuple[str, str]:
    """Return what is foretold of a size."""
    tokens = "" if found.law.form is SIZES else f" after {amount(round(forecast.tokens))} tokens"
    beyond = (
        f"{forecast.beyond:.3g} times the largest run" if forecast.beyond > 1 else "within the runs"
    )
    return (
        _size(forecast.parameters),
        f"loss {forecast.loss:.4f}{tokens}, {100 * LEVEL:.0f} % in {band_text(forecast)}; {beyond}",
    )


def ended_row(each: StageEnd) -> tuple[str, str]:
    """Return how a stage has ended, and what was foretold."""
    verdict = "inside" if each.inside else "OUTSIDE"
    ungrown = f"where models of {_size(each.point.parameters)} end that were never grown"
    band = band_text(each.forecast)
    return (each.stage, f"loss {each.point.loss:.4f}, {verdict} {band}, {ungrown}")


def band_text(forecast: Forecast) -> str:
    """Return the interval."""
    return f"{forecast.low:.4f} to {forecast.high:.4f}"


def _size(parameters: float) -> str:
    return amount(round(parameters))
