"""What flmgrow writes must be what megatron-core writes and reads.

megatron-core runs in a process of its own (see ``megatron_runs``):
``tests/support/megatron_data.py``.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import make_jsonl, make_ranks

from flmgrow.cli.app import run
from flmgrow.trainer.data.indexed import token_dtype

pytestmark = pytest.mark.slow  # megatron-core reads what was written, and makes an index for C++

SCRIPT = Path(__file__).parents[2] / "support" / "megatron_data.py"
TEXTS = [f"{i}: the thing " + "ü" * (i * i % 23) for i in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, with two and with four bytes per token."""
    pytest.importorskip("tiktoken")
    folder = tmp_path_factory.mktemp("corpora")
    texts = make_jsonl(folder / "a.jsonl", TEXTS)
    ranks = make_ranks(folder / "tiny.tiktoken")
    for name, options in {
        "bytes": ["--tokenizer", "bytes"],
        "ranks": ["--tokenizer", str(ranks), "--workers", "3"],
        "wide": ["--tokenizer", str(make_ranks(folder / "wide.tiktoken", 70_000))],
    }.items():
        assert run(["data", "prepare", str(texts), str(folder / name), *options]) == 0
    facts = ('{"text": "the thing", "label": true}', '{"text": "a thing", "label": false}')
    (folder / "facts.jsonl").write_text("\n".join(facts))
    more = make_jsonl(folder / "b.jsonl", [f"another text, {i}" * 3 for i in range(40)])
    assert run(["data", "prepare", str(more), str(folder / "more"), "--tokenizer", "bytes"]) == 0
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What megatron-core makes of them."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", ["bytes", "ranks", "wide"])
def test_the_files_are_megatrons_own(name: str, folder: Path, found: dict[str, Any]) -> None:
    own = {
        ending: hashlib.sha256((folder / name / f"data.{ending}").read_bytes()).hexdigest()
        for ending in ("bin", "idx")
    }
    assert own == found[name]["built"]
    manifest = json.loads((folder / name / "flmgrow-data.json").read_text())
    assert manifest["dtype"] == found[name]["dtype"]
    assert manifest["tokens"] == sum(map(len, found[name]["documents"]))


@pytest.mark.parametrize("name", ["bytes", "ranks", "wide"])
def test_megatron_reads_the_texts(name: str, folder: Path, found: dict[str, Any]) -> None:
    from flmgrow.trainer.data.tokenizers import open_tokenizer

    kind = (
        "bytes"
        if name == "bytes"
        else str(folder / ("tiny.tiktoken" if name == "ranks" else "wide.tiktoken"))
    )
    tokenizer = open_tokenizer(kind)
    documents = found[name]["documents"]
    assert [document[-1] for document in documents] == [tokenizer.eod] * len(TEXTS)
    assert [tokenizer.decode(document[:-1]) for document in documents] == TEXTS


def test_the_tokens_type_is_megatrons(found: dict[str, Any]) -> None:
    own = {size: token_dtype(int(size)).name for size in found["optimal"]}
    assert own == found["optimal"]


def windows(found: dict[str, Any]) -> int:
    """How many samples of 16 tokens, and one more for the last label, an epoch has."""
    return int((sum(map(len, found["bytes"]["documents"])) - 1) // 16)


def test_an_epoch_holds_every_token_once(found: dict[str, Any]) -> None:
    documents = found["bytes"]["documents"]
    for epoch in found["epochs"]["epochs"]:
        assert len(epoch) == windows(found)
        counts = Counter(token for row in epoch for token in row[:-1])
        wanted = Counter(token for document in documents for token in document)
        left_out = wanted - counts
        assert not counts - wanted
        assert left_out.total() == sum(map(len, documents)) - 16 * len(epoch) <= 16


def test_samples_are_text_that_was_there(found: dict[str, Any]) -> None:
    """Each sample is a run of whole documents in some order, cut at its ends."""
    documents = [bytes(document[:-1]) for document in found["bytes"]["documents"]]
    for row in found["epochs"]["epochs"][1]:
        for part in " ".join(map(str, row)).split("256"):
            piece = bytes(int(token) for token in part.split())
            assert any(piece in document for document in documents)


def test_epochs_and_seeds_differ_and_repeat(found: dict[str, Any]) -> None:
    epochs = found["epochs"]
    orders = [*epochs["epochs"], epochs["other seed"]]
    assert len({json.dumps(order) for order in orders}) == 4
    assert epochs["again"] == epochs["epochs"][1]


def test_documents_may_be_held_out(found: dict[str, Any]) -> None:
    chosen = [bytes(document[:-1]) for document in found["bytes"]["documents"][:25]]
    for row in found["epochs"]["held"]:
        for part in " ".join(map(str, row)).split("256"):
            piece = bytes(int(token) for token in part.split())
            assert any(piece in document for document in chosen)


def test_one_dataset_of_all_epochs_would_not_do(found: dict[str, Any]) -> None:
    """The negative control: megatron-core's own order changes with the length of the run."""
    two, three = found["orders"]
    assert two != three
    assert sorted(two) != sorted(three)


def test_three_stages_and_a_resume_see_what_one_run_sees(found: dict[str, Any]) -> None:
    """Other batches, other replicas, an interruption; more than an epoch of both corpora."""
    stages = found["stages"]
    assert stages["consumed"] == sum(map(len, stages["wanted"])) == 308
    assert stages["consumed"] * 107 // 200 > windows(found)
    assert stages["consumed"] * 93 // 200 > stages["windows"]
    assert stages["seen"] == stages["wanted"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"nothing\.idx: No such file"),
        ("tokenizer", r"bytes: made with another tokenizer: eod 256, now 0$"),
        (
            "share 0.02",
            r"bytes: data.validation_share 0.02 leaves \d\d of 1,\d\d\d tokens for validation "
            r"\(1 of 50 documents\), wanted more than 900 for one sample \| make .* larger",
        ),
        (
            "share 0.97",
            r"bytes: data.validation_share 0.97 leaves \d\d of 1,\d\d\d tokens for training "
            r"\(1 of 50 documents\), wanted more than 900 for one sample \| make .* smaller",
        ),
        ("short", r"data\.idx: \d+ tokens, wanted more than 1000000 for one sample"),
        ("cut", r"data\.bin: 2 bytes, its index says \d+"),
        ("index", r"data\.idx: not an index"),
        ("manifest", r"flmgrow-data\.json: not a manifest of data"),
    ],
)
def test_corpora_that_cannot_be_are_refused(case: str, message: str, found: dict[str, Any]) -> None:
    assert re.search(message, found["refusals"][case])


def test_how_often_a_stage_reads_its_data_is_told(found: dict[str, Any]) -> None:
    """Of 400 samples a quarter is the teacher's; of the others three quarters are the first's."""
    sizes = found["reading"]["per epoch"]
    wanted = [
        [
            samples > size,
            f"reads {name}: {size:,} samples an epoch, epochs 0.00 to {samples / size:.2f}",
        ]
        for name, size, samples in zip(
            ("data.teacher", "bytes", "more"), sizes, (100, 225, 75), strict=True
        )
    ]
    assert [list(line) for line in found["reading"]["epochs"]] == wanted
    assert [again for again, _ in wanted] == [True, True, False]


CHANGES = {
    "share": r"data\.validation_share is 0\.1, now 0$",
    "seed": r"data\.seed is 1234, now 5$",
    "documents": r"data\.document_attention is not given, now true$",
    "weight": r"data\.corpora\.0\.weight is 3, now 1$",
    "corpora": (
        r"data\.corpora\.0\.path is bytes \(.* tokens in 50 documents, checksum \w{8}\), now more"
        r" \(.*\); data\.corpora\.0\.weight is 3, now 1; data\.corpora\.1\.path is more .*, now byt"
    ),
    "one less": r".*data\.corpora\.1\.path is more \(.*\), now not given; .*1\.weight is 1, now n",
    "teacher": r"data\.teacher\.share is 0\.25, now 0\.5; data\.teacher\.packed is true, now f",
    "no teacher": r"data\.teacher\.files is 2 propositions, checksum \w{8}, now not given; ",
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_key_that_differs_is_named(case: str, found: dict[str, Any]) -> None:
    assert re.match(CHANGES[case], found["reading"]["changes"][case])


def test_nothing_is_left_beside_a_corpus(found: dict[str, Any]) -> None:
    assert found["left"] == ["data.bin", "data.idx", "flmgrow-data.json"]


def test_propositions_in_a_packed_row_do_not_see_each_other(found: dict[str, Any]) -> None:
    """In megatron-core's model, with the mask; without it, as a control, they do."""
    assert found["attention"]["masked"] < 1e-5
    assert found["attention"]["crossing"] > 1e-2


def test_documents_apart_are_the_same_samples(found: dict[str, Any]) -> None:
    """Positions restart behind each end of a document, whose next token's loss does not count."""
    for sample in found["parted"]:
        assert sample["same"]
        assert sample["whole"]
        assert not sample["taught"]
        row = sample["row"]
        assert sample["counts"] == [0 if token == 256 else 1 for token in row[:-1]]
        positions, place = [], 0
        for token in row[:-1]:
            positions.append(place)
            place = 0 if token == 256 else place + 1
        assert sample["positions"] == positions
    lasts = {sample["counts"][-1] for sample in found["parted"]}
    assert lasts == {0, 1}  # documents that end with a sample, and that go on behind it


@pytest.mark.parametrize("positions", ["rope", "xpos", "learned"])
def test_a_document_in_a_sample_is_one_alone(positions: str, found: dict[str, Any]) -> None:
    """Losses and gradients in megatron-core's model; without the mask, a control, they differ."""
    apart = found["losses of documents"][positions]
    assert apart["restarted"] < 1e-12
    assert apart["gradient"] < 1e-12
    assert apart["crossing"] > 1e-2


def test_the_guides_example_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (lines,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "propositions.jsonl").write_text(lines)
    for name in ("corpus-en", "corpus-zh"):
        texts = make_jsonl(tmp_path / f"{name}.jsonl", TEXTS)
        words = ["data", "prepare", str(texts), str(tmp_path / name), "--tokenizer", "bytes"]
        assert run(words) == 0
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["160", "160"], done.stderr
