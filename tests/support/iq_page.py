"""What the page on the IQ evaluation shows of items and tables, made of the real ones."""

from flmgrow.evaluation.paper import Table
from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.iq.items import Item, make
from flmgrow.evaluation.tasks.symbolic.mapping import symbols

CUT = "[...]"
_LONG, _KEPT = 1500, 330
_HYPOTHESES = (
    ("The shop is closed on Sundays.", "One can shop there every day.", 1),
    ("Ann bought three apples.", "Ann bought fruit.", 0),
    ("All trains were late.", "No train was on time.", 0),
)


def example(generator: str) -> str:
    """The first item of seed 0 with its answer, after an example where the rule is to be found."""
    (made,) = make(GENERATORS[generator], 0, 1, 1)
    series = [made.item] if "Input" not in made.item.prompt else [made.examples[0], made.item]
    return "\n\n".join(_shown(item) for item in series)


def _shown(item: Item) -> str:
    space = "" if item.prompt.endswith("，") else " "
    text = f"{item.prompt}{space}{item.answer}"
    if len(text) < _LONG:
        return text
    key = text.index("Pass key")
    parts = [text[:_KEPT], text[key : key + 40], text[-_KEPT:]]
    return f" {CUT} ".join(parts if key > _KEPT else [parts[0], parts[2]])


def rte_example() -> str:
    """Two examples and an item of RTE's form, with the symbols of seed 0."""
    names = symbols(0, "iq_rte", 2)
    texts = [
        f"Premise: {premise}\nHypothesis: {hypothesis}\n"
        f"Question: Does the hypothesis follow from the premise?\nAnswer: {names[label]}"
        for premise, hypothesis, label in _HYPOTHESES
    ]
    return "\n\n".join(texts)


def table(content: Table) -> str:
    """A table of the paper in Markdown."""
    head = ("", *(f"`{name}`" if content.scores else name for name in content.columns))
    form = ".2f" if content.scores else ",.10g"
    rows = [
        (name, *("" if value is None else format(value, form) for value in row))
        for name, row in content.rows.items()
    ]
    lines = [head, ("---",) * len(head), *rows]
    title = f"Table {content.number}: {content.title}"
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
