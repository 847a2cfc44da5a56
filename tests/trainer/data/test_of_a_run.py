"""A checkpoint knows which data and which tokenizer it was trained with, and names what differs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from stage_runs import stage_data, train, write_stage
from tiny_tokenizers import make_jsonl, make_tokenizer_json

from flmgrow.cli.app import run
from flmgrow.formats.history.manifest import training_of
from flmgrow.formats.opening import open_checkpoint
from flmgrow.trainer.data.tokenizers import open_tokenizer

pytestmark = pytest.mark.slow  # whole stages are trained

MODEL = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, its tokenizer, and a stage of a step that was trained on it."""
    folder = tmp_path_factory.mktemp("run")
    make_tokenizer_json(folder / "tokenizer.json")
    texts = make_jsonl(folder / "en.jsonl", ["the thing that grows " * 9] * 20)
    words = ["data", "prepare", str(texts), str(folder / "en")]
    assert run([*words, "--tokenizer", str(folder / "tokenizer.json")]) == 0
    data = {"tokenizer": "../tokenizer.json", "sequence_length": 16, "corpora": [{"path": "../en"}]}
    content = stage_data(folder, training={"steps": 1, "batch": 2, "micro_batch": 2})
    train(write_stage(folder / "stage", {**content, "model": MODEL, "data": data}))
    return folder


def test_the_tokenizer_goes_along_through_growth(folder: Path, tmp_path: Path) -> None:
    """What export asks for: the id that ends documents, and what the tokenizer is known by."""
    tokenizer = open_tokenizer(str(folder / "tokenizer.json"))
    source = folder / "stage" / "checkpoints"
    assert run(["expand", str(source), str(tmp_path / "grown"), "--num-layers", "2"]) == 0
    for path in (source, tmp_path / "grown"):
        checkpoint = open_checkpoint(path)
        carried = training_of(checkpoint)
        checkpoint.close()
        assert carried is not None
        assert carried.tokenizer is not None
        assert carried.tokenizer.model_dump() == tokenizer.identity
        assert carried.tokenizer.eod == 0
        assert carried.data_keys is not None
        assert carried.data_keys["data.validation_share"] == 0
        assert str(carried.data_keys["data.corpora.0.path"]).startswith("en (3,")


def test_what_differs_from_the_data_before_is_named(folder: Path, tmp_path: Path) -> None:
    """The tokenizer's file is written anew meanwhile: that is no difference."""
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    stage = tmp_path / "run" / "stage" / "stage.yaml"
    changed = stage.read_text().replace("steps: 1", "steps: 2")
    stage.write_text(changed.replace("sequence_length: 16", "sequence_length: 8"))
    told = train(stage, expect=2)
    assert "samples of other data: data.sequence_length is 16, now 8\n" in told
    stage.write_text(changed)
    told = train(stage)
    assert "goes on from step 1" in told
    assert re.search(r"^small  reads en: \d+ samples an epoch, epochs 0\.01 to 0\.0\d$", told, re.M)


def test_held_out_text_does_not_depend_on_batch_or_layout(folder: Path, tmp_path: Path) -> None:
    """A stage with another batch reads the same text: its loss does not jump for that alone.

    All have the same weights, but for steps of a rate that changes none.
    """
    shutil.copytree(folder, tmp_path / "run")
    found = {}
    for name, batch, layout in (
        ("plain", 4, {}),
        ("larger", 16, {}),
        ("replicas", 4, {"dp": 2}),
        ("chunks", 8, {"pp": 2, "vpp": 2}),
    ):
        content = stage_data(
            folder,
            model={**MODEL, "num_layers": 4},
            training={"steps": 1, "batch": batch, "micro_batch": 2},
            learning_rate={"peak": 1e-12},
            layout=layout,
            log={"validation_every": 1},
        )
        del content["data"]["teacher"]
        content["data"] |= {"tokenizer": "../tokenizer.json", "corpora": [{"path": "../en"}]}
        content["data"]["validation_share"] = 0.3
        if name != "plain":  # fresh weights are others where ranks are
            content["checkpoint"] = {"load": "../plain/checkpoints"}
        stage = write_stage(tmp_path / "run" / name, content)
        train(stage)
        lines = map(json.loads, (stage.parent / "metrics.jsonl").read_text().splitlines())
        (found[name],) = (line["validation_loss"] for line in lines if "validation_loss" in line)
    for name in ("larger", "replicas", "chunks"):
        assert found[name] == pytest.approx(found["plain"], rel=1e-6), name
