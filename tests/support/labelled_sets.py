"""Small sets in the form of SuperGLUE's and CLUE's: what an item's class is stands in its text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES = ("amber", "birch", "cedar")
"""Words that say in an item's text which class it is of."""

Row = dict[str, Any]


def wsc(text: str, label: int) -> Row:
    words = f"Ann saw Eve when she, of {text}, left ."
    return {"text": words, "span1_text": "Ann", "span1_index": 0, "span2_text": "she",
            "span2_index": 4, "label": label}  # fmt: skip


def cluewsc(text: str, label: int) -> Row:
    target = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 6}
    return {"text": f"小明说{text[:2]}，他走了 {text}", "target": target, "label": label}


ROWS: dict[str, Callable[[str, int], Row]] = {
    "super_glue/boolq": lambda t, c: {"passage": t, "question": "is it", "label": c},
    "super_glue/wic": lambda t, c: {"sentence1": t, "sentence2": t, "word": "bank", "label": c},
    "super_glue/rte": lambda t, c: {"premise": t, "hypothesis": "so it is", "label": c},
    "super_glue/wsc.fixed": wsc,
    "clue/afqmc": lambda t, c: {"sentence1": t, "sentence2": "好", "label": c},
    "clue/csl": lambda t, c: {"abst": t, "keyword": ["甲", "乙"], "label": str(c)},
    "clue/ocnli": lambda t, c: {"sentence1": t, "sentence2": "好", "label": c},
    "clue/cluewsc2020": cluewsc,
}


def rows(make: Callable[[str, int], Row], count: int, classes: int, start: int = 0) -> list[Row]:
    """Rows whose classes come in turn."""
    numbered = ((number, number % classes) for number in range(start, start + count))
    return [make(f"{CLASSES[label]} {number}", label) for number, label in numbered]


def write_rows(path: Path, content: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def write_sets(folder: Path) -> Path:
    """All eight sets; RTE's and OCNLI's have more items than are taken."""
    for name, make in ROWS.items():
        classes = 3 if name == "clue/ocnli" else 2
        items = 330 if name in ("super_glue/rte", "clue/ocnli") else 120
        write_rows(folder / name / "validation.jsonl", rows(make, items, classes))
        write_rows(folder / name / "train.jsonl", rows(make, 40, classes, 10_000))
    return folder


def told_class(prompt: str) -> str:
    """The word that tells the class of what is asked."""
    asked = prompt.rpartition("\n\n")[2]
    return next(word for word in CLASSES if word in asked)


def mapped(prompt: str) -> str:
    """The symbol that stands for the class of what is asked, as examples with it have it."""
    *examples, _ = prompt.split("\n\n")
    word = told_class(prompt)
    line = next(example for example in examples if word in example).splitlines()[-1]
    space = " " if ": <" in line else ""
    return f"{space}<{line.partition('<')[2]}"
