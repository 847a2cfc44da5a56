"""A card says what the manifests say, with their numbers, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import accepted, check_lines, flmgrow
from hub_places import manifest
from pico import make_checkpoint

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.history.manifest_schema import check_form
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.huggingface.safetensors_file import SafetensorsFile
from flmgrow.hub.card import CardFacts, card, is_own
from flmgrow.hub.evaluation import EvaluationScore, read_scores
from flmgrow.model.config import ModelConfig

CONFIG = ModelConfig(
    layers=2, hidden=8, ffn=12, kv_groups=2, queries_per_group=2, head_dim=2, vocab=24,
    max_positions=32,
)  # fmt: skip


def made(**changes: Any) -> dict[str, Any]:
    """The plain data of a manifest, and these changes."""
    source = {"name": "old", "parameters": 10, "iteration": 7, "family": [], "hub": None}
    growth = {"methods": {"width": "zero"}, "preserves_function": True, "seed": 3}
    return {
        "manifest_version": 2,
        "parameters": 20,
        "iteration": None,
        "dtype": "bfloat16",
        "padded_vocab": 24,
        "source": {**source, "digest": "d", "receipt": None},
        "growth": {**growth, "request": {}, "axes": {}},
        "masks": {},
        "optimizer": "none",
        "options": {},
        "files": [],
        "receipt": None,
        **changes,
    }


def text_of(data: dict[str, Any], **facts: Any) -> str:
    check_form(data, "flmgrow.json")
    about = CardFacts(**{"name": "org/new", "config": CONFIG, **facts})
    return card(Manifest.parse(data), about).decode()


def head_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(page.split("---\n")[1])
    return data


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generations, verified, and the export of the last."""
    place = tmp_path_factory.mktemp("card")
    make_checkpoint(place / "ckpt-a", "llama")
    accepted(
        "expand", place / "ckpt-a", place / "ckpt-b", "--hidden-size", "16", "--method", "zero"
    )
    accepted("verify", place / "ckpt-a", place / "ckpt-b")
    grow = ("--num-layers", "6", "--method", "zero")
    accepted("expand", place / "ckpt-b", place / "ckpt-c", *grow)
    accepted("verify", place / "ckpt-b", place / "ckpt-c")
    accepted("export", place / "ckpt-c", place / "out", "--license", "apache-2.0")
    return place / "out"


def test_the_family_and_every_receipt_are_told(exported: Path) -> None:
    page = (exported / "README.md").read_text()
    b, c = (manifest(exported.parent / name) for name in ("ckpt-b", "ckpt-c"))
    source: Any = c["source"]
    (day,) = {member["date"] for member in source["family"] if member["name"] == "ckpt-a"}
    assert f"| ckpt-a | 8,208 | 30 | 3,840 | {day} |" in page  # 240 samples of 16 tokens
    assert re.search(r"\| ckpt-a \|.*\n\| ckpt-b \|.*width=zero.*\n\| ckpt-c \|.*depth=zero", page)
    for name, old, found in (("ckpt-b", "ckpt-a", b), ("ckpt-c", "ckpt-b", c)):
        receipt: Any = found["receipt"]
        numbers = next(check for check in receipt["checks"] if check["name"] == "function")
        row = rf"\| {name} \| {old} \| equal \| {receipt['date']} \| {numbers['max_logit']:.3g} \|"
        assert re.search(rf"{row}.*\| float64 \|", page), page
    assert head_of(page)["license"] == "apache-2.0"
    assert head_of(page)["tags"] == ["flmgrow", "model-growth"]
    assert is_own(page.encode())


def test_shards_say_where_they_come_from(exported: Path) -> None:
    parent: Any = manifest(exported.parent / "ckpt-c")
    with (exported / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    told = header["__metadata__"]
    assert told["source"] == parent["source"]["digest"]
    assert told["growth"] == "depth=zero"
    SafetensorsFile(exported / "model.safetensors").close()


def test_the_card_is_no_part_of_what_verify_checks(exported: Path, tmp_path: Path) -> None:
    page = exported / "README.md"
    before = page.read_bytes()
    page.write_text("Mine.\n")
    accepted("verify", exported.parent / "ckpt-c", exported, "--no-receipt")
    page.write_bytes(before)


def test_what_is_not_known_is_left_out() -> None:
    page = text_of(made())
    for word in ("Verification", "Evaluation", "license", "base_model", "tokens", "date", "None"):
        assert word not in page
    assert "Tokenizer" not in page


def test_what_is_known_is_told() -> None:
    source = {**made()["source"], "hub": {"repository": "org/old", "commit": "c" * 40}}
    source["family"] = [
        {
            "name": "old",
            "parameters": 10,
            "iteration": None,
            "tokens": 12 * 10**11,
            "date": "2026-01-02",
        }
    ]
    page = text_of(
        made(source=source),
        tokenizer=True,
        revision="v2",
        scores=(EvaluationScore("t", "acc", 0.5, 0.01),),
    )
    assert head_of(page)["base_model"] == "org/old"
    assert "| 1.20T | 2026-01-02 |" in page
    assert 'AutoTokenizer.from_pretrained("org/new", revision="v2")' in page
    assert "| t | acc | 0.5 | 0.01 |" in page
    assert f"goes back to org/old at commit {'c' * 40}" in page


def test_a_growth_that_changes_the_function_is_called_so() -> None:
    growth = {**made()["growth"], "methods": {"depth": "stack"}, "preserves_function": False}
    assert "does not keep the function" in text_of(made(growth=growth))


def test_a_difference_is_not_hidden() -> None:
    receipt = {"equal": False, "source": "old", "checks": []}
    assert "| org/new | old | DIFFERENT |" in text_of(made(receipt=receipt))


def test_names_from_files_are_only_text() -> None:
    name = "a|b\n# <script>[x](y)`\x1b"
    source = {**made()["source"], "name": name}
    page = text_of(made(source=source))
    assert "\n# <script>" not in page
    assert "\x1b" not in page
    assert r"a\|b\\n# \<script\>\[x\](y)\`" in page


@pytest.mark.parametrize("change", [b"more\n", b" "])
def test_an_edited_page_is_somebody_elses(change: bytes) -> None:
    page = text_of(made()).encode()
    assert is_own(page)
    assert not is_own(page + change)
    assert not is_own(change + page)
    assert not is_own(page.replace(b"org", b"ORG"))
    assert not is_own(b"# Mine\n")


@pytest.mark.parametrize(
    ("content", "scores"),
    [
        ('{"ARC": 51.5}', (EvaluationScore("ARC", "", 51.5),)),
        ('{"arc": {"acc": 0.5, "alias": "x"}}', (EvaluationScore("arc", "acc", 0.5),)),
        (
            '{"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1}}}',
            (EvaluationScore("arc", "acc", 0.5, 0.1), EvaluationScore("arc", "f1 (strict)", 1.0)),
        ),
    ],
)
def test_scores_are_read(content: str, scores: tuple[EvaluationScore, ...]) -> None:
    assert read_scores(content.encode(), "x") == scores


@pytest.mark.parametrize("content", ["{}", '{"a": "b"}', '{"results": 3}', '{"a": true}'])
def test_a_file_without_scores_is_refused(content: str) -> None:
    with pytest.raises(UsageError, match=r"^x: "):
        read_scores(content.encode(), "x")
    with pytest.raises(BadCheckpointError):
        read_scores(b"[", "x")


def test_a_bad_evaluation_file_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("[")
    outcome = flmgrow("export", exported, tmp_path / "x", "--evaluation", tmp_path / "scores.json")
    assert outcome.code == 2
    check_lines(outcome.err, "--evaluation .*scores.json: is not JSON")


@pytest.mark.slow
def test_the_loading_code_works(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.parent)
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert sum(p.numel() for p in names["model"].parameters()) == manifest(exported)["parameters"]
