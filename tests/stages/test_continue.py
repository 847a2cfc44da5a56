"""Growing what was downloaded: the shipped schedule, on a model of its kind that trains fast."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import accepted, flmgrow
from repository import ROOT
from speakers import make_named
from stage_runs import metrics, write_schedule
from tiny_tokenizers import make_jsonl
from trained_here import carried_out
from transformers import AutoModelForCausalLM, AutoTokenizer

from flmgrow.cli import run as cli
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import training_flops
from flmgrow.model.tensors import parameter_count

SCHEDULE = yaml.safe_load((ROOT / "configs" / "continue-smollm2.yaml").read_text())
GUIDE = (ROOT / "docs" / "guides" / "grow-what-you-downloaded.md").read_text(encoding="utf-8")
PROMPT = "the thing"

SMOLLM2 = ModelConfig(
    layers=30, hidden=576, ffn=1536, kv_groups=3, queries_per_group=3, head_dim=64, vocab=49152,
    max_positions=8192, norm="rmsnorm", activation="swiglu", linear_bias=False, qkv_bias=False,
)  # fmt: skip


def test_both_arms_take_the_same_flops() -> None:
    """As the guide says, by flmgrow's own counting; of the sizes that it names."""
    (stage,) = SCHEDULE["stages"]
    sizes = stage["model"]
    large = replace(SMOLLM2, layers=sizes["num_layers"], ffn=sizes["ffn_hidden_size"])
    (small,) = yaml.safe_load(GUIDE.partition("```yaml\n")[2].partition("```")[0])["stages"]
    assert (parameter_count(SMOLLM2), parameter_count(large)) == (134_515_008, 196_458_048)
    length = SCHEDULE["data"]["sequence_length"]
    costs = [
        training_flops(config, length) * arm["training"]["steps"]
        for config, arm in ((SMOLLM2, small), (large, stage))
    ]
    assert costs[1] == pytest.approx(costs[0], rel=2e-3)


def tiny(content: dict[str, Any]) -> dict[str, Any]:
    """The shipped schedule for a model of a few thousand parameters: all else is as it is."""
    (stage,) = content["stages"]
    grown = {**stage, "model": {"num_layers": 5, "ffn_hidden_size": 80}, "training": {"steps": 4}}
    log = {"every": 2, "validation_every": 2, "validation_samples": 4}
    data = {**content["data"], "sequence_length": 16, "validation_share": 0.2}
    return {**content, "data": data, "log": log, "stages": [grown]}


def test_the_shipped_schedule_from_import_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of the guide but the evaluation; what transformers says is what flmgrow says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "launch", carried_out)
    make_named(tmp_path / "smollm2-135m")
    make_jsonl(tmp_path / "train.jsonl", [f"the thing {i} in the end" for i in range(99)])
    accepted("data", "prepare", "train.jsonl", "python-docs", "--tokenizer", "smollm2-135m")
    (tmp_path / "configs").mkdir()
    schedule = write_schedule(tmp_path / "configs", tiny(SCHEDULE))
    done = flmgrow("run", schedule, "--out", "runs/grown")
    assert done.code == 0, done.err
    assert "flmgrow expand" in done.err
    assert "flmgrow verify" in done.err
    steps = metrics(tmp_path / "runs/grown/01-grown/stage.yaml")
    assert steps[-1]["step"] == 4
    assert steps[-1]["loss"] < steps[0]["loss"]
    with open_checkpoint(tmp_path / "runs/grown/01-grown/checkpoints") as opened:
        assert (opened.config.layers, opened.config.ffn) == (5, 80)
    accepted("export", "runs/grown/01-grown/checkpoints", "grown-hf")
    tokenizer = AutoTokenizer.from_pretrained("grown-hf")
    model = AutoModelForCausalLM.from_pretrained("grown-hf", dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")
    theirs = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
    words = ("--prompt", PROMPT, "--max-new-tokens", 8, "--dtype", "float32", "--json")
    said = json.loads(accepted("generate", "grown-hf", *words).out)
    assert [each for each in theirs.tolist() if each != tokenizer.eos_token_id] == said["tokens"]
