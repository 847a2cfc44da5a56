"""flmgrow's own model answers as the harness's ``hf`` does, from every format and layout."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import accepted
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from speakers import make_named, make_speaker
from tiny_tokenizers import make_tokenizer_json

from flmgrow.errors import UsageError
from flmgrow.evaluation.backends import Computing, _is_ours, language_model
from flmgrow.formats.opening import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = [
    "llama", "llama tied with biases", "qwen3", "gpt2", "gpt_neox", "olmo2", "gemma2",
    "gemma3 interpolated",
]  # fmt: skip
PAIRS = [
    ("the other", " thing"),
    ("the other", " then the thinking"),
    ("a b", "the"),
    ("ends in blanks  ", "a"),
    ("", "the whole"),
    ("", "</s>a"),
    ("</s>the", " start"),
    ("x" * 70, " too long for the model"),
    ("the other", " thing"),
]
TEXTS = ["the other thing", "", "a", "the long text " * 12]


def asked(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("task", number, 1))
        for number, each in enumerate(arguments)
    ]


def native(folder: Path, **how: Any) -> Any:
    with open_checkpoint(folder) as source:
        return language_model(source, Computing(dtype="float32", device="cpu", **how))


def wanted_from(folder: Path) -> Any:
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=3)


def answers(model: Any) -> tuple[list[float], list[bool], list[float]]:
    pairs = model.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    texts = [(text,) for text in TEXTS if text]
    rolling = model.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], rolling


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf", name)
    wanted, found = answers(wanted_from(folder)), answers(native(folder))
    assert found[0] == pytest.approx(wanted[0], abs=1e-4)
    assert found[1] == wanted[1]
    assert found[2] == pytest.approx(wanted[2], abs=1e-4)


@pytest.mark.parametrize(("name", "apart"), [("gpt2", 1e-8), ("gemma3", 1e-4)])
def test_answers_in_float64_are_those_of_transformers(
    name: str, apart: float, tmp_path: Path
) -> None:
    """In GPT-2 transformers computes nothing in float32 by itself, as it does RMS norms and
    rotations. Of seven such layers, what it answers in float32 is further off than that.
    """
    folder = make_named(tmp_path / "hf", name)
    with open_checkpoint(folder) as source:
        found = answers(language_model(source, Computing(dtype="float64", device="cpu")))
    theirs = HFLM(pretrained=str(folder), dtype="float64", device="cpu", batch_size=3)
    wanted = answers(theirs)
    for place in (0, 2):
        assert found[place] == pytest.approx(wanted[place], rel=0, abs=apart)
    assert answers(native(folder))[0] != pytest.approx(found[0], rel=0, abs=1e-8)


GENERATED = [
    ("the other", {"until": ["th"], "max_gen_toks": 12}),
    ("a", {"until": [], "max_gen_toks": 12}),
    ("the", {"until": "\n", "max_gen_toks": 5, "do_sample": False}),
    ("x" * 70, {"until": [], "max_gen_toks": 12}),
    ("other", {"until": ["e", "q"], "max_gen_toks": 30}),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf", name)
    requests = asked("generate_until", GENERATED)
    wanted = wanted_from(folder).generate_until(requests, disable_tqdm=True)
    assert native(folder).generate_until(requests, disable_tqdm=True) == wanted


def test_every_layout_and_format_answers_alike(tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf")
    accepted("import", folder, tmp_path / "legacy", "--tp", 2, "--pp", 2,
             "--padded-vocab-size", 512)  # fmt: skip
    accepted("import", folder, tmp_path / "dist", "--format", "torch_dist")
    wanted = answers(native(folder))
    for form in ("legacy", "dist"):
        assert answers(native(tmp_path / form)) == wanted


def test_a_grown_model_answers_as_before_while_its_masks_are_closed(tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf")
    grow = ("--hidden-size", 48, "--ffn-hidden-size", 72, "--num-layers", 6, "--method", "mask")
    accepted("import", folder, tmp_path / "small")
    accepted("expand", tmp_path / "small", tmp_path / "grown", *grow)
    accepted("bake", tmp_path / "grown", tmp_path / "open", "--value", 1, "--no-optimizer")
    wanted, found, opened = (
        answers(native(tmp_path / name)) for name in ("small", "grown", "open")
    )
    assert found[0] == pytest.approx(wanted[0], abs=1e-4)
    assert opened[0] != pytest.approx(wanted[0], abs=1e-4)


def test_the_harness_own_model_reads_the_export(tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf")
    accepted("import", folder, tmp_path / "legacy", "--tp", 2)
    notes: list[str] = []
    how = Computing("hf", "float32", "cpu", cache=tmp_path / "cache")
    with open_checkpoint(tmp_path / "legacy") as source:
        found = answers(language_model(source, how, notes.append))
        again = answers(language_model(source, how, notes.append))
    assert found[0] == pytest.approx(answers(native(folder))[0], abs=1e-4)
    assert again == found
    assert len(notes) == 1


def test_the_harness_own_model_takes_the_same_tokenizer(tmp_path: Path) -> None:
    """Of an export without its settings, transformers alone finds no id that ends a text."""
    folder = make_speaker(tmp_path / "hf")
    how = Computing("hf", "float32", "cpu", cache=tmp_path / "cache")
    with open_checkpoint(folder) as source:
        model = language_model(source, how)
    wanted = native(folder)
    assert answers(model)[0] == pytest.approx(answers(wanted)[0], abs=1e-4)
    requests = asked("generate_until", GENERATED)
    assert model.generate_until(requests, disable_tqdm=True) == wanted.generate_until(
        requests, disable_tqdm=True
    )


def test_the_harness_own_model_needs_an_id_that_ends_a_text(tmp_path: Path) -> None:
    folder = make_speaker(tmp_path / "hf")
    make_tokenizer_json(folder / "tokenizer.json", end="<nothing>")
    how = Computing("hf", cache=tmp_path / "cache")
    with (
        open_checkpoint(folder) as source,
        pytest.raises(UsageError, match="hf needs an id that ends a text") as raised,
    ):
        language_model(source, how)
    assert "backend='native'" in str(raised.value.hint)
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        native(folder)


def test_a_text_without_a_context_needs_an_id_in_front(tmp_path: Path) -> None:
    folder = make_speaker(tmp_path / "hf")
    make_tokenizer_json(folder / "tokenizer.json", end="<nothing>")
    model = native(folder)
    found = model.loglikelihood(asked("loglikelihood", [("the", " a")]), disable_tqdm=True)
    assert found[0][0] < 0
    with pytest.raises(UsageError, match="nothing says which id begins or ends a text"):
        model.loglikelihood(asked("loglikelihood", [("", "the")]), disable_tqdm=True)


def test_what_generation_cannot_do_is_refused(tmp_path: Path) -> None:
    model = native(make_named(tmp_path / "hf"))
    for settings, says in (
        ({"num_beams": 4, "max_gen_toks": 4}, "num_beams 4: not known here"),
        ({"max_gen_toks": 64}, "asks for up to 64 new tokens, the model reads 64"),
    ):
        with pytest.raises(UsageError, match=says):
            model.generate_until(asked("generate_until", [("the", settings)]), disable_tqdm=True)
    (request,) = asked("generate_until", [("the", {"max_gen_toks": 64})])
    request.task_name = "iq_rules"
    with pytest.raises(UsageError, match="task iq_rules: asks for up to 64 new tokens"):
        model.generate_until([request], disable_tqdm=True)


def test_the_hf_backend_tells_of_too_many_new_tokens_in_a_line(tmp_path: Path) -> None:
    how = Computing("hf", "float32", "cpu", cache=tmp_path / "cache")
    (request,) = asked("generate_until", [("the", {"max_gen_toks": 64})])
    request.task_name = "iq_rules"
    with open_checkpoint(make_named(tmp_path / "hf")) as source:
        model = language_model(source, how)
    with pytest.raises(UsageError, match="task iq_rules: asks for up to 64 new tokens, the model"):
        model.generate_until([request], disable_tqdm=True)


def test_texts_are_drawn_alike_whatever_else_is_asked(tmp_path: Path) -> None:
    model = native(make_named(tmp_path / "hf"))
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 9, "until": []}
    requests = asked("generate_until", [(text, settings) for text in ("the", "a b", "the")])
    found = model.generate_until(requests, disable_tqdm=True)
    assert model.generate_until(requests[2:], disable_tqdm=True) == found[2:]
    assert model.generate_until(requests[:1] * 2, disable_tqdm=True)[0] == found[0]
    assert len({*model.generate_until(requests[:1] * 4, disable_tqdm=True)}) > 1


def test_a_backend_that_is_missing_is_told(tmp_path: Path) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vllm is here")
    folder = make_named(tmp_path / "hf")
    with open_checkpoint(folder) as source, pytest.raises(UsageError, match="package vllm"):
        language_model(source, Computing("vllm"))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = make_named(tmp_path / "hf", size=200)
    with pytest.raises(UsageError, match=r"makes token 2\d\d, the model has 200"):
        answers(native(folder))


@pytest.mark.parametrize("wrong", [{"backend": "vlm"}, {"dtype": "int8"}, {"batch_size": 0}])
def test_what_cannot_compute_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Computing(**wrong)


def test_only_code_that_is_shipped_is_run(tmp_path: Path) -> None:
    """Of an export for another backend: none, ours, ours changed by a byte, and another file."""
    assert not _is_ours(tmp_path)
    shipped = tmp_path / "modeling_flm.py"
    shipped.write_bytes((ROOT / "formats/huggingface/shipped/modeling_flm.py").read_bytes())
    assert _is_ours(tmp_path)
    (tmp_path / "more.py").write_text("import os")
    assert not _is_ours(tmp_path)
    (tmp_path / "more.py").unlink()
    shipped.write_bytes(shipped.read_bytes() + b"#")
    assert not _is_ours(tmp_path)
