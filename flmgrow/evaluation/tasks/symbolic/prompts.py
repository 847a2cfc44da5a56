"""What is asked of an item, where a template would not do."""

from collections.abc import Mapping
from typing import Any

from flmgrow.evaluation.tasks.recorded import NUMBER
from flmgrow.evaluation.tasks.symbolic.task import SYMBOL, SYMBOLS

_NOT_TEXT = (NUMBER, SYMBOL, SYMBOLS, "label", "idx", "id")


def fields(doc: Mapping[str, Any]) -> str:
    """Return the fields of any item, each on a line with its name."""
    told = [f"{name}: {value}" for name, value in doc.items() if name not in _NOT_TEXT]
    return "\n".join([*told, "label:"])


def wsc(doc: Mapping[str, Any]) -> str:
    """Return a question about a pronoun of SuperGLUE's WSC: its spans count words."""
    words, noun, pronoun = doc["text"].split(), doc["span1_text"], doc["span2_text"]
    place = doc["span2_index"]
    words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
    question = f'Does "*{pronoun}*" stand for "{noun}"?'
    return f"Text: {' '.join(words)}\nQuestion: {question}\nAnswer:"


def cluewsc(doc: Mapping[str, Any]) -> str:
    """Return a question about a pronoun of CLUE's WSC: its spans count characters."""
    text, target = doc["text"], doc["target"]
    noun, pronoun, place = target["span1_text"], target["span2_text"], target["span2_index"]
    marked = f"{text[:place]}*{pronoun}*{text[place + len(pronoun) :]}"
    return f"文本：{marked}\n问题：“*{pronoun}*”指的是“{noun}”吗？\n答案："
