"""The paper's numbers add up: averages as printed, shares of a whole number of items."""

import math

import pytest

from flmgrow.evaluation.paper import (
    FLM_101B,
    GLM_130B,
    GPT_3,
    STAGES,
    TABLES,
    Table,
    scores,
)

AVERAGES = {
    4: {FLM_101B: 43.94, GLM_130B: 48.11},
    6: {"FLM-16B": 39.19, "FLM-51B": 41.79, FLM_101B: 44.41},
    7: {GPT_3: 47.60, GLM_130B: 48.19, FLM_101B: 46.76},
    8: {GLM_130B: 39.96, FLM_101B: 42.07},
    9: {GPT_3: 86.03, GLM_130B: 71.49, FLM_101B: 76.42},
    10: {GPT_3: 70.00, GLM_130B: 53.00, FLM_101B: 64.67},
    11: {GPT_3: 70.11, GLM_130B: 53.56, FLM_101B: 60.11},
}
SCORES = [table for table in TABLES if table.scores]


@pytest.mark.parametrize("table", SCORES, ids=lambda table: str(table.number))
def test_averages_are_those_of_the_paper(table: Table) -> None:
    for model, printed in AVERAGES[table.number].items():
        row = [value for value in table.rows[model] if value is not None]
        assert sum(row) / len(table.columns) == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize(
    "table", [table for table in SCORES if table.items], ids=lambda table: str(table.number)
)
def test_scores_are_shares_of_so_many_items(table: Table) -> None:
    """And of no other up to 300 where that is not 100 or 300, but perhaps of twice as many."""
    assert table.items is not None
    for column, task in enumerate(table.columns):
        values = [row[column] for row in table.rows.values() if row[column] is not None]
        fitting = [n for n in range(90, 301) if all(is_share(value, n) for value in values)]
        assert table.items[task] in fitting
        if table.items[task] not in (100, 300):
            assert {*fitting} <= {table.items[task], 2 * table.items[task]}


def is_share(percent: float | None, items: int) -> bool:
    assert percent is not None
    return math.isclose(round(percent * items / 100) * 100 / items, percent, abs_tol=0.0051)


def test_every_row_has_every_column() -> None:
    assert [table.number for table in TABLES] == [3, 4, 4, 5, 6, 7, 8, 9, 10, 11]
    for table in TABLES:
        assert all(len(row) == len(table.columns) for row in table.rows.values()), table.number


def test_scores_by_task() -> None:
    ours = scores(FLM_101B)
    assert len(ours) == 4 + 4 + 4 + 3 + 3 + 3
    assert ours["hellaswag"].value == pytest.approx(0.6623)  # of the whole set, not of a part
    assert STAGES not in {score.table for score in ours.values()}
    assert ours["iq_wsc"].standard_error == pytest.approx(0.0483, abs=1e-4)
    assert ours["mmlu"].standard_error is None
    assert "iq_csl" not in scores(GPT_3)
    assert scores("nobody") == {}
