"""The paper's scores as columns of a table.

A task of lm-evaluation-harness may have several metrics, of which the paper reports one: on the
tasks of Open LLM, that of its leaderboard. Elsewhere there is one metric, or the first is meant.
"""

from flmgrow.evaluation.paper import FLM_101B, GLM_130B, GPT_3, scores
from flmgrow.evaluation.results import Result
from flmgrow.hub.evaluation import Score

MODELS = (GPT_3, GLM_130B, FLM_101B)
METRICS = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm"}


def paper_results() -> list[Result]:
    """Return the scores of each model that the paper compares, as one column each."""
    return [
        Result(
            f"{model} (paper)",
            tuple(
                Score(task, METRICS.get(task, ""), score.value, score.standard_error)
                for task, score in scores(model).items()
            ),
        )
        for model in MODELS
    ]
