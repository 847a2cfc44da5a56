"""What was answered is not asked again, and nothing is taken for an answer that is none."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from strategies import examples

from flmgrow.errors import BadDataError, UsageError
from flmgrow.evaluation.answers import Answer, Answers, key_of
from flmgrow.evaluation.keeping import KeptModel

IDENTITY = {"checkpoint": "aa", "dtype": "float32"}
ANSWERS: dict[str, Answer] = {
    "one": (-1.25, True), "two": -0.1, "three": "a text\u2028\n", "four": (-math.inf, False),
    "five": "", "six": 1e-320,
}  # fmt: skip


def kept(folder: Path, identity: dict[str, str] | None = None, rank: int = 0) -> Answers:
    return Answers(folder, IDENTITY if identity is None else identity, rank)


def fill(folder: Path, rank: int = 0) -> Path:
    answers = kept(folder, rank=rank)
    for key, answer in ANSWERS.items():
        answers.keep(key, answer)
    answers.close()
    return folder / f"answers.{rank}.jsonl"


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    path = fill(tmp_path)
    found = kept(tmp_path)
    assert {key: found[key] for key in ANSWERS} == ANSWERS
    assert len(found) == len(ANSWERS)
    before = path.read_bytes()
    found.keep("one", (0.0, False))
    found.close()
    assert path.read_bytes() == before
    assert all(isinstance(json.loads(line), dict) for line in before.splitlines())


def test_answers_of_all_ranks_are_known_to_each(tmp_path: Path) -> None:
    fill(tmp_path, rank=1)
    answers = kept(tmp_path, rank=0)
    assert "one" in answers
    answers.keep("seven", "new")
    answers.close()
    assert kept(tmp_path, rank=2)["seven"] == "new"


@examples(60)
@given(st.data())
def test_a_file_that_was_cut_off_anywhere_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    path = fill(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    answers = kept(folder)
    assert all(ANSWERS[key] == answers[key] for key in ANSWERS if key in answers)
    for key, answer in ANSWERS.items():
        answers.keep(key, answer)
    answers.close()
    assert path.read_bytes() == whole


@examples(60)
@given(st.data())
def test_a_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    path = fill(folder)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 2))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises((BadDataError, UsageError), match=r"damaged|another|no answers"):
        kept(folder)


@pytest.mark.parametrize("name", ["checkpoint", "dtype", "backend"])
def test_answers_of_something_else_are_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    with pytest.raises(UsageError, match=f"holds answers of another {name}"):
        kept(tmp_path, {**IDENTITY, name: "bb"})
    kept(tmp_path)


def test_answers_of_another_version_are_refused(tmp_path: Path) -> None:
    from flmgrow.storage.content_sum import with_sum

    line = json.dumps(with_sum({"answers_version": 2, "identity": IDENTITY}))
    (tmp_path / "answers.0.jsonl").write_text(line + "\n")
    with pytest.raises(BadDataError, match="no answers that this version"):
        kept(tmp_path)


def test_every_word_of_a_question_counts() -> None:
    keys = [
        key_of("loglikelihood", "a", "b"), key_of("loglikelihood", "a", "c"),
        key_of("loglikelihood", "ab", ""), key_of("generate_until", "a", "b"),
        key_of("generate_until", "a", {"until": ["b"]}), key_of("loglikelihood_rolling", "\ud800"),
    ]  # fmt: skip
    assert len({*keys}) == len(keys)


class Counting(LM):  # type: ignore[misc]  # the harness has no types
    """Answers by counting what it is asked, and breaks off after ``most`` answers."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.most = most

    def _all(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        found = []
        for request in requests:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(request.args[0])
            found.append((-float(len(self.asked)), True) if kind == "loglikelihood" else
                         str(len(self.asked)))  # fmt: skip
            self.cache_hook.add_partial(kind, request.args, found[-1])
        return found

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._all("generate_until", requests)


def asked(kind: str, texts: Sequence[str], second: Any = " x") -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=(text, second), idx=0,
                 metadata=("task", number, 1))
        for number, text in enumerate(texts)
    ]  # fmt: skip


def test_what_was_broken_off_goes_on(tmp_path: Path) -> None:
    requests = asked("loglikelihood", ["a", "b", "c", "a", "d"])
    broken = Counting(most=2)
    with pytest.raises(KeyboardInterrupt):
        KeptModel(broken, kept(tmp_path)).loglikelihood(requests)
    model = Counting()
    found = KeptModel(model, kept(tmp_path)).loglikelihood(requests)
    assert (broken.asked, model.asked) == (["a", "b"], ["c", "d"])
    assert [pair[0] for pair in found] == [-1, -2, -1, -1, -2]
    again = Counting()
    assert KeptModel(again, kept(tmp_path)).loglikelihood(requests) == found
    assert not again.asked


def test_drawn_texts_are_kept_one_by_one_and_drawn_together(tmp_path: Path) -> None:
    (first, *_), settings = asked("generate_until", ["a"]), {"do_sample": True, "until": []}
    request = Instance("generate_until", {}, ("a", settings), 0, ("task", 0, 2))
    assert first.args
    model = Counting(most=2)
    assert KeptModel(model, kept(tmp_path)).generate_until([request] * 2) == ["1", "2"]
    again = Counting()
    assert KeptModel(again, kept(tmp_path)).generate_until([request] * 2) == ["1", "2"]
    assert not again.asked
    assert KeptModel(again, kept(tmp_path)).generate_until([request] * 3) == ["1", "2", "3"]
    assert again.asked == ["a"] * 3
