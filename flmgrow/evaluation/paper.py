"""The tables of the paper's evaluation as data, to be put beside one's own.

Tables 3 to 11 of FLM-101B (arXiv 2309.03852, version 3): the numbers as they are printed, in per
cent unless a table says otherwise, None where a cell is empty. Columns of an evaluation are named
by the tasks that measure the same here, as far as it can be known: the paper's own prompts and
items were never published. ``items`` is how many items a column was measured on. The paper says so
for some; for others it is the number, at most 300, that all printed scores are shares of (of two
such numbers, the one that the set has: 104 in WSC).

Where the paper does not agree with itself:

* Table 4 costs Llama-2 (13B) at 201.37 zettaFLOPs, the text at 210.37: digits that changed places.
* FLM-101B has other scores for HellaSwag and MMLU in table 6 than in table 4: there, a part of both
  sets was used (20 % and 30 %).
* MMLU of FLM-101B in table 4 is followed by 44.50 in parentheses, which is that of eFLM-16B.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GPT_3, GLM_130B, FLM_101B = "GPT-3", "GLM-130B", "FLM-101B"

PaperRow = tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """A table of the paper: for each row, a number in each column.

    ``scores`` is whether columns are tasks and numbers are per cent. ``items`` is how many items
    each column was measured on, as far as it follows from the numbers.
    """

    number: int
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, PaperRow]
    scores: bool = True
    items: Mapping[str, int] | None = None


TABLES = (
    Table(
        3,
        "Carbon emissions",
        ("GPU or TPU hours", "thermal design power, W", "energy, MWh", "net emissions, t CO2e"),
        {
            GPT_3: (3.55e6, 330, 1171, 552),
            "Gopher": (3.77e6, 283, 1066, 380),
            "PaLM": (8.40e6, 378.5, 3179, 271),
            GLM_130B: (1.11e6, 400, 444, 257),
            "Llama-2-70B": (1.72e6, 400, 688, 291),
            FLM_101B: (1.01e5, 400, 40, 26),
        },
        scores=False,
    ),
    Table(
        4,
        "Open LLM",
        ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2"),
        {
            FLM_101B: (39.76, 66.23, 28.30, 41.47),
            GLM_130B: (42.15, 67.91, 42.59, 39.80),
            "eFLM-16B": (None, None, 44.50, None),
        },
    ),
    Table(
        4,
        "Cost of training (zettaFLOPs), and the average of Open LLM (per cent)",
        ("cost", "average"),
        {
            "Llama-2-13B": (201.37, 58.66),
            "Llama-2-7B": (106.60, 54.32),
            "Llama-13B": (94.81, 56.08),
            "Llama-7B": (49.54, 49.72),
            GLM_130B: (210.80, 48.11),
            FLM_101B: (28.22, 43.94),
        },
        scores=False,
    ),
    Table(
        5,
        "C-Eval",
        ("average", "hard", "STEM", "social science", "humanities", "other"),
        {
            "GPT-4": (68.7, None, None, None, None, None),
            "ChatGPT": (54.4, None, None, None, None, None),
            GLM_130B: (44.0, None, None, None, None, None),
            "eFLM-16B": (46.1, 28.9, 38.3, 53.7, 46.8, 52.6),
        },
        scores=False,
    ),
    Table(
        6,
        "The stages of FLM-101B, on parts of the sets",
        ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2"),
        {
            "FLM-16B": (32.25, 58.57, 27.02, 38.92),
            "FLM-51B": (35.32, 64.04, 27.66, 40.12),
            FLM_101B: (39.76, 67.88, 28.54, 41.47),
        },
    ),
    Table(
        7,
        "Symbolic mapping: SuperGLUE-IQ",
        ("iq_boolq", "iq_wic", "iq_rte", "iq_wsc"),
        {
            GPT_3: (50.84, 53.33, 48.38, 37.86),
            GLM_130B: (40.13, 48.67, 47.65, 56.31),
            FLM_101B: (49.50, 50.33, 48.38, 38.83),
        },
        items={"iq_boolq": 299, "iq_wic": 300, "iq_rte": 277, "iq_wsc": 103},
    ),
    Table(
        8,
        "Symbolic mapping: CLUE-IQ",
        ("iq_afqmc", "iq_csl", "iq_ocnli", "iq_cluewsc"),
        {
            GPT_3: (None, None, None, None),
            GLM_130B: (33.33, 53.85, 34.00, 38.67),
            FLM_101B: (38.33, 55.29, 27.33, 47.33),
        },
        items={"iq_afqmc": 300, "iq_csl": 208, "iq_ocnli": 300, "iq_cluewsc": 300},
    ),
    Table(
        9,
        "Rule understanding",
        ("iq_counting_en", "iq_replace_lowercase", "iq_replace_word"),
        {
            GPT_3: (82.43, 80.67, 95.00),
            GLM_130B: (60.81, 69.67, 84.00),
            FLM_101B: (69.59, 64.00, 95.67),
        },
        items={"iq_counting_en": 148, "iq_replace_lowercase": 300, "iq_replace_word": 300},
    ),
    Table(
        10,
        "Pattern mining",
        ("iq_head_tail", "iq_full_repeating", "iq_head_slicing"),
        {GPT_3: (61, 92, 57), GLM_130B: (38, 70, 51), FLM_101B: (52, 79, 63)},
        items={"iq_head_tail": 100, "iq_full_repeating": 100, "iq_head_slicing": 100},
    ),
    Table(
        11,
        "Anti-interference",
        ("iq_multi_key", "iq_one_fact", "iq_two_facts"),
        {
            GPT_3: (92.67, 78.33, 39.33),
            GLM_130B: (77.67, 56.33, 26.67),
            FLM_101B: (89.00, 59.00, 32.33),
        },
        items={"iq_multi_key": 300, "iq_one_fact": 300, "iq_two_facts": 300},
    ),
)

STAGES = 6
"""The table that has the stages of FLM-101B beside each other, on parts of the sets."""


@dataclass(frozen=True)
class PaperScore:
    """A score of the paper: ``value`` in [0, 1], the ``items`` it was measured on if known."""

    value: float
    items: int | None
    table: int

    @property
    def standard_error(self) -> float | None:
        """The standard error of a share of so many items; None where that is not known."""
        if self.items is None:
            return None
        return float((self.value * (1 - self.value) / (self.items - 1)) ** 0.5)


def scores(model: str) -> dict[str, PaperScore]:
    """Return a model's scores by the names of the tasks; {} for a model that has none.

    Of the tables on whole sets: the one of the stages (:data:`STAGES`) is left out.
    """
    found = {}
    for table in TABLES:
        if table.scores and table.number != STAGES and model in table.rows:
            items = table.items or {}
            for task, value in zip(table.columns, table.rows[model], strict=True):
                if value is not None:
                    found[task] = PaperScore(value / 100, items.get(task), table.number)
    return found
