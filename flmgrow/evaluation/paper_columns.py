"""The paper's scores as columns of a table.

A task of lm-evaluation-harness may have several metrics, of which the paper reports one: on the
tasks of Open LLM, that of its leaderboard; where strings stand for classes, what a model writes, as
everywhere in its own evaluation. Elsewhere there is one metric, or the first is meant.
"""

from collections.abc import Mapping

from flmgrow.evaluation import paper
from flmgrow.evaluation.results import EvaluationResult
from flmgrow.hub.evaluation import EvaluationScore

SYMBOLIC = (7, 8)
"""The tables of classes that have strings for names."""
METRICS = {
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    **{
        task: "exact_match"
        for table in paper.TABLES
        if table.number in SYMBOLIC
        for task in table.columns
    },
}
CAUTION = "the paper's prompts and items were never published: its scores are near these, no more"


def paper_results(stages: bool = False) -> list[EvaluationResult]:
    """Return the scores of each model that the paper compares, as one column each.

    Or, on the parts of the sets that it compares its own ``stages`` on, those of each stage.
    """
    if stages:
        (table,) = (each for each in paper.TABLES if each.number == paper.STAGES)
        return [
            _column(model, {
                task: paper.PaperScore(value / 100, None, table.number)
                for task, value in zip(table.columns, row, strict=True)
                if value is not None
            })
            for model, row in table.rows.items()
        ]  # fmt: skip
    models = (paper.GPT_3, paper.GLM_130B, paper.FLM_101B)
    return [_column(model, paper.scores(model)) for model in models]


def _column(model: str, found: Mapping[str, paper.PaperScore]) -> EvaluationResult:
    scores = tuple(
        EvaluationScore(task, METRICS.get(task, ""), score.value, score.standard_error)
        for task, score in found.items()
    )
    return EvaluationResult(f"{model} (paper)", scores)
