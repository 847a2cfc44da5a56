"""A schedule is planned as a whole: what it leaves out follows, and what cannot be carried out is
refused before the first token is read.
"""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import accepted, flmgrow
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT
from stage_plans import BASE, planned, written

from flmgrow.model.tensors import parameter_count
from flmgrow.stages.places import LONGEST_NAME
from flmgrow.stages.schedule import merge, read_schedule

PAPER = ROOT / "configs" / "flm-101b.yaml"
EFLM = ROOT / "configs" / "eflm-16b.yaml"
TINY = ROOT / "configs" / "tiny.yaml"
GUIDE = ROOT / "docs" / "guides" / "run.md"


def test_the_papers_schedule_is_the_papers() -> None:
    """Li et al. (2023), table 1 and section 3: steps, tokens, batches, warm-up, layouts, GPUs."""
    found = json.loads(accepted("run", PAPER, "--dry-run", "--json").out)
    stages = {stage["name"]: stage for stage in found["stages"]}

    def column(key: str) -> list[Any]:
        return [stages[name][key] for name in ("16b", "51b", "101b")]

    assert column("steps") == [52_000, 8_400, 6_000]
    assert column("warmup_steps") == [2_000, 100, 107]
    assert column("peak") == [4e-4, 3.4e-4, 2e-4]
    assert column("layout") == ["TP2 x PP1", "TP4 x PP2", "TP4 x PP4"]
    assert column("processes") == [192, 192, 192]
    assert column("first_iteration") == [0, 52_000, 60_400]
    for key, wanted, within in (
        ("tokens", (245.37e9, 39.64e9, 26.54e9), 1e-3),
        ("parameters", (16e9, 51e9, 101e9), 0.04),
        ("batch_tokens", (4.72e6, 4.72e6, 4.42e6), 1e-2),
    ):
        for number, size in zip(column(key), wanted, strict=True):
            assert number == pytest.approx(size, rel=within), key
    assert column("growth")[0] == {}
    assert set(column("growth")[2].values()) == {"mask"}
    commands = [command[1] for command in found["commands"]]
    assert commands == ["train", "expand", "verify", "train", "expand", "verify", "train"]


def test_a_dry_run_shows_the_hours_that_cost_shows() -> None:
    """And says what they suppose, since nobody said it."""
    shown = json.loads(accepted("run", PAPER, "--dry-run", "--json").out)
    costed = json.loads(accepted("cost", PAPER, "--json").out)
    for key in ("gpu_hours", "days", "utilisation", "memory"):
        assert [each[key] for each in shown["stages"]] == [each[key] for each in costed["stages"]]
    assert shown["accelerator"] == "A100"
    told = accepted("run", PAPER, "--dry-run").out
    assert f"time        {costed['all']['gpu_hours']:,.0f} GPU hours" in told
    assert "supposed    40 % of the peak of A100" in told


def test_the_stage_with_a_teacher_is_the_papers_first() -> None:
    """But for the propositions, which `flmgrow run` takes as it takes text."""
    assert (
        json.loads(accepted("run", EFLM, "--dry-run", "--json").out)["stages"][0]["steps"] == 52_000
    )
    (taught,), (plain, *_) = read_schedule(EFLM), read_schedule(PAPER)
    teacher = taught.stage.data.teacher
    assert teacher is not None
    assert teacher.share == 0.1
    assert taught.stage.data.model_copy(update={"teacher": None}) == plain.stage.data
    for part in ("model", "layout", "training", "learning_rate", "optimizer"):
        assert getattr(taught.stage, part) == getattr(plain.stage, part)


def test_each_stages_rate_ends_where_the_next_begins() -> None:
    """ "Approximately inherits": by cosine, from one peak to the next, and to 6e-6 in the end."""
    stages = read_schedule(PAPER)
    for each, wanted in zip(stages, (3.4e-4, 2.0e-4, 6e-6), strict=True):
        stage, rate = each.stage, each.stage.learning_rate
        done = (stage.steps - stage.warmup_steps) / (stage.decay_steps - stage.warmup_steps)
        last = rate.floor + (rate.peak - rate.floor) * (1 + math.cos(math.pi * done)) / 2
        assert last == pytest.approx(wanted, rel=5e-3)


def test_the_tiny_schedule_has_the_papers_form() -> None:
    stages = read_schedule(TINY)
    layouts = [str(each.layout) for each in stages]
    assert layouts == ["TP1 x PP1", "TP2 x PP1", "TP2 x PP2"]
    grown = {str(name) for each in stages[1:] if each.growth for name in each.growth.methods}
    assert grown == {"width", "heads", "ffn", "depth"}
    sizes = [parameter_count(each.config) for each in stages]
    assert sizes == sorted(sizes)


def test_the_guides_example_is_a_schedule(tmp_path: Path) -> None:
    text, *_ = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "schedule.yaml"
    path.write_text(text, encoding="utf-8")
    small, large = read_schedule(path)
    assert (small.last, large.first, large.last) == (200, 200, 300)
    assert large.config.ffn == 4 * 96


def test_what_a_stage_leaves_out_follows(tmp_path: Path) -> None:
    small, large = planned(tmp_path)
    assert (small.config.ffn, large.config.ffn) == (128, 192)
    assert (small.config.kv_groups, large.config.kv_groups) == (4, 6)
    assert small.config.head_dim == large.config.head_dim == 8
    assert large.stage.training.batch == 8
    assert large.first == small.last == 6


def test_sizes_that_were_said_stay(tmp_path: Path) -> None:
    _, large = planned(tmp_path, model={"ffn_hidden_size": 80, "num_query_groups": 2})
    assert large.config.ffn == 80
    assert large.config.kv_groups == 2
    assert large.config.queries_per_group == 3


def test_the_model_is_what_growth_leads_to(tmp_path: Path) -> None:
    """Zero width changes epsilon; muP's output multiplier grows with the width."""
    rmsnorm = {
        "normalization": "rmsnorm",
        "multipliers": {"mup_base_width": 16, "output": 2.0},
    }
    small, large = planned(tmp_path, model=rmsnorm, large={"growth": {"method": "zero"}})
    assert large.config.norm_eps == pytest.approx(small.config.norm_eps * 32 / 48)
    assert large.config.multipliers.output == pytest.approx(3.0)
    assert large.stage.model.config(1, 1) == large.config


def test_sizes_hold_on_through_a_chain_of_growths(tmp_path: Path) -> None:
    multipliers = {"multipliers": {"mup_base_width": 16, "output": 2.0}}
    path = written(tmp_path, model=multipliers, large={"growth": {"ramp_steps": 4}})
    content = yaml.safe_load(path.read_text())
    largest = {"name": "largest", "model": {"hidden_size": 64, "num_attention_heads": 8}}
    content["stages"].append(content["stages"][0] | largest)
    path.write_text(yaml.safe_dump(content))
    content["stages"][1]["model"]["vocab_size"] = 300
    path.write_text(yaml.safe_dump(content))
    *_, last = read_schedule(path)
    assert last.config.layers == 3  # as the stage before has it
    assert last.config.vocab == 300
    assert last.config.multipliers.output == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("large", "left"),
    [
        ({"growth": {"ramp_steps": 5}}, "width at 0.8, heads at 0.8, ffn at 0.8, depth at 0.8"),
        ({}, "width at 0.0008, "),  # expand's default is longer than the stage
        ({"growth": {"ramp_steps": 1}, "masks": {"ramp_steps": 16}}, "width at 0.25, "),
        ({"growth": {"ramp_steps": 2}, "masks": {"in_turn": True}}, "(ffn at 0, depth at 0)"),
        ({"growth": {"ramp_steps": 4}}, None),
        ({"growth": {"ramp_steps": 9}, "masks": {"ramp_steps": 2}}, None),
        ({"growth": {"ramp_steps": 1}, "masks": {"in_turn": True}}, None),
    ],
)
def test_masks_are_open_before_the_next_growth(
    tmp_path: Path, large: dict[str, Any], left: str | None
) -> None:
    """Else ``expand`` would refuse what was trained for it; a stage that adds nothing waits."""
    path = written(tmp_path, large=large)
    content = yaml.safe_load(path.read_text())
    plain = {"training": {"steps": 4}, "learning_rate": {"peak": 1e-3}}
    content["stages"].append({"name": "deeper", "model": {"num_layers": 4}, **plain})
    path.write_text(yaml.safe_dump(content))
    outcome = flmgrow("run", path, "--dry-run")
    if left is None:
        assert outcome.code == 0, outcome
        return
    assert outcome.code == 2
    assert "stage deeper: growth: the stage large has not opened its own when it" in outcome.err
    assert left in outcome.err
    content["stages"].insert(2, {"name": "longer", **plain, "training": {"steps": 5000 * 4}})
    path.write_text(yaml.safe_dump(content))
    assert flmgrow("run", path, "--dry-run").code == 0


def test_what_a_stage_is_too_short_for_is_told(tmp_path: Path) -> None:
    large = {"learning_rate": {"peak": 1e-3, "warmup_samples": 32}}
    told = accepted("run", written(tmp_path, large=large), "--dry-run").out
    assert "open after 5,000 steps, of which the stage has 4;" in told
    assert "4 steps of warm-up, of which the stage has 4\n" in told


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.booleans())
def test_a_length_takes_the_place_of_the_other_kind(one: int, two: int, steps: bool) -> None:
    kinds = ("steps", "tokens") if steps else ("tokens", "steps")
    common = {"training": {kinds[0]: one, "batch": 4}}
    assert merge(common, {"training": {kinds[1]: two}}) == {"training": {kinds[1]: two, "batch": 4}}
    assert merge(common, {}) == common


def test_merging_leaves_what_is_merged(tmp_path: Path) -> None:
    common = {"a": {"b": 1, "c": [1, 2]}}
    assert merge(common, {"a": {"c": [3]}, "d": None}) == {"a": {"b": 1, "c": [3]}, "d": None}
    assert common == {"a": {"b": 1, "c": [1, 2]}}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "smaller": ({"large": {"model": {"hidden_size": 16}}}, "stage large: .*16"),
    "fewer layers": (
        {"large": {"model": {"num_layers": 1}}}, "stage large: model.num_layers: wanted 1, the",
    ),
    "larger heads": ({"large": {"model": {"kv_channels": 16}}}, "the head size cannot grow"),
    "other norm": (
        {"large": {"model": {"normalization": "rmsnorm"}}},
        "model.normalization: growth changes sizes only",
    ),
    "misspelt": ({"large": {"growth": {"methods": "mask"}}}, "stage large: growth: methods: "),
    "unknown method": (
        {"large": {"growth": {"method": "magic"}}},
        "stage large: growth.method magic: 'magic' is no method for width",
    ),
    "unknown kind of layers": (
        {"large": {"growth": {"new_layers": "old"}}}, "stage large: growth.new_layers old: wanted",
    ),
    "growth that is no mapping": (
        {"large": {"growth": False}}, "stage large: growth: is False, wanted a mapping",
    ),
    "growth by a word": ({"large": {"growth": "mask"}}, "growth: is 'mask', wanted a mapping"),
    "growth of nothing": ({"large": {"growth": []}}, r"growth: is \[\], wanted a mapping"),
    "zero with tied LayerNorm": (
        {"large": {"growth": {"method": "zero"}}}, "stage large: .*tied",
    ),
    "no vocabulary": ({"model": {"vocab_size": None}}, "model.vocab_size: is not given"),
    "one name twice": ({"large": {"name": "small"}}, "two stages are called small"),
    "a path for a name": ({"large": {"name": "../x"}}, "wanted letters, digits"),
    "no name": ({"large": {"name": None}}, "stage 2: has no name"),
    "a number for a name": ({"large": {"name": 51}}, "stage 2: name is 51, wanted a text"),
    "a list for a name": ({"large": {"name": ["x"]}}, r"stage 2: name is \['x'\], wanted a text"),
    "a stage by its name": ({"stages": ["large"]}, "stage 1: is 'large', wanted a mapping"),
    "a long name": ({"large": {"name": "x" * 101}}, "stage 2: name has 101 bytes, wanted at most"),
    "a name of long letters": ({"large": {"name": "\u5927" * 34}}, "stage 2: name has 102 bytes"),
    "uneven layers": (
        {"large": {"layout": {"pp": 2, "pipeline_layers": [1, 1]}}}, "stage large: layout: ",
    ),
    "layers that do not spread": (
        {"large": {"layout": {"pp": 2}}},
        "(?s)stage large: layout: 3 layers cannot .*hint: give layout.pipeline_layers with 2 numb",
    ),
    "too many ranks": ({"large": {"layout": {"tp": 4}}}, "stage large: layout: TP4 cannot split"),
    "too many ranks at first": ({"layout": {"tp": 3}}, "stage small: layout: TP3 cannot split"),
    "heads that do not divide": (
        {"model": {"num_attention_heads": 5}},
        "stage small: model.hidden_size 32 is no multiple of num_attention_heads 5",
    ),
    "too few positions": (
        {"model": {"positions": "learned", "max_position_embeddings": 8}},
        "stage small: data.sequence_length 32: the model has 8 positions",
    ),
    "a checkpoint to begin with": (
        {"checkpoint": {"load": "x"}}, "schedule.yaml: checkpoint.load: is 'x', but the run's",
    ),
    "a folder of its own": (
        {"large": {"checkpoint": {"folder": "x"}}}, "stage large: checkpoint.folder: is 'x', but",
    ),
    "event files elsewhere": (
        {"log": {"tensorboard": "/x"}}, "log.tensorboard: is '/x', wanted tensorboard: each stage",
    ),
    "metrics elsewhere": ({"log": {"metrics": "x"}}, "schedule.yaml: log.metrics: is 'x', but"),
    "no stages": ({"stages": []}, "has no stages"),
    "stages by name": ({"stages": {"small": {}}}, "has no list of stages"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_carried_out_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    if "stages" in changes:
        path = tmp_path / "schedule.yaml"
        path.write_text(yaml.safe_dump(BASE | changes))
    else:
        path = written(tmp_path, **changes)
    outcome = flmgrow("run", path, "--out", tmp_path / "out", "--dry-run")
    assert outcome.code == 2, outcome
    assert outcome.err.startswith(f"error: {path}: ")
    assert re.search(message, outcome.err), outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_first_stage_grows_from_nothing(tmp_path: Path) -> None:
    content = copy.deepcopy(BASE)
    content["stages"][0]["growth"] = {"method": "mask"}
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump(content))
    outcome = flmgrow("run", path, "--dry-run")
    assert outcome.code == 2
    assert "stage small: growth: the first stage has nothing to grow from" in outcome.err


def test_what_is_nearly_refused_is_planned(tmp_path: Path) -> None:
    """Of the refusals above, what lies just on the other side."""
    name = "x" * LONGEST_NAME
    _, large = planned(tmp_path, large={"name": name, "growth": None}, checkpoint={"load": None})
    assert large.folder == f"02-{name}"
    _, large = planned(tmp_path, large={"name": "51", "growth": {}}, checkpoint={"every": 2})
    assert large.stage.name == "51"
    assert large.stage.checkpoint.every == 2


def test_a_checkpoints_size_counts_masters(tmp_path: Path) -> None:
    """A distributed optimizer has them of float32 weights, too: it works on copies."""
    sizes = []
    for distributed in (False, True):
        layout = {"distributed_optimizer": distributed}
        words = ("run", written(tmp_path, layout=layout), "--dry-run", "--json")
        (small, _) = json.loads(accepted(*words).out)["stages"]
        sizes.append(small["checkpoint_bytes"] / small["parameters"])
    assert sizes == [4 + 8, 4 + 4 + 8]
