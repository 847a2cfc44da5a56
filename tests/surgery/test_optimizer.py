"""The optimizer state through resharding and a whole run: every state, every element."""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow
from damage import edit_all, rank_files
from growing import SmallBlocks, all_files, grow_checkpoint, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from optimizer_states import equal, optimizers, states
from pico import CONFIGS, even, make_checkpoint, padded_vocab
from sampling import first
from strategies import Case, any_config, as_request, cases, examples, layouts_of

from flmgrow.errors import StorageError
from flmgrow.formats.history.manifest import read_manifest
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.operators.choices import Moments
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.plan import make_plan
from flmgrow.surgery.verify import Verification, verify

MOMENTS = ("exp_avg", "exp_avg_sq")


# --- resharding


@examples(12)
@given(st.data())
def test_there_and_back_is_bit_equal(data: DataObject) -> None:
    """Steps, groups and scheduler come back, too, and every logical element stays in between."""
    config = data.draw(any_config())
    first, second = data.draw(layouts_of(config)), data.draw(layouts_of(config))
    dtype = data.draw(st.sampled_from(["float64", "float32", "bfloat16"]))
    naming = data.draw(st.sampled_from(["local", "fused"]))
    with TemporaryDirectory() as folder:
        a, b, c = (Path(folder, name) for name in "abc")
        make_checkpoint(a, config, first, dtype=dtype, naming=naming, optimizer=True)
        grow_checkpoint(a, b, request=as_request(second))
        before, between = states(a), states(b)
        assert before.keys() == between.keys()
        for state, name in ((kind, name) for kind in before for name in before[kind]):
            rows = config.vocab if name in ("embedding", "head") else None
            assert same_bits(before[state][name][:rows], between[state][name][:rows]), name
        grow_checkpoint(b, c, request=as_request(first))
        if padded_vocab(config, second.tp) >= padded_vocab(config, first.tp):
            assert equal(optimizers(a), optimizers(c))


@pytest.mark.parametrize("naming", first(1, ["fused", "local"]))
@pytest.mark.parametrize("name", ["llama", "gpt", "flm"])
def test_the_state_is_that_of_a_run_in_the_new_layout(
    name: str, naming: str, tmp_path: Path
) -> None:
    """Resharded, a checkpoint is bit for bit the one the factory writes in that layout."""
    config = CONFIGS[name]
    layouts = [Layout(1, 1, 1, (4,)), Layout(2, 2, 1, (1, 3)), Layout(4, 2, 2, (1, 1, 2, 0))]
    for number, layout in enumerate(layouts):
        path = tmp_path / f"{number}"
        make_checkpoint(path, config, layout, naming=naming, optimizer=True, multiple=16)
    for source in range(3):
        for target in range(3):
            out = tmp_path / f"{source}-{target}"
            grow_checkpoint(tmp_path / f"{source}", out, request=as_request(layouts[target]))
            if target <= source:  # with no more padding than there was
                assert equal(optimizers(out), optimizers(tmp_path / f"{target}"))


# --- the whole run


@pytest.mark.parametrize("how", first(1, ["keep", "asymmetric"]))
def test_workers_and_memory_do_not_change_a_byte(how: Moments, tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    make_checkpoint(tmp_path / "a", config, even(config, 2, 2), dtype="bfloat16", optimizer=True)
    target = Target(
        hidden=31,
        ffn=28,
        heads=12,
        layers=5,
        untie=True,
        methods=parse_methods("copy"),
        moments=how,
    )
    outputs = []
    for number, execution in enumerate((Execution(), SmallBlocks(elements=50, workers=3))):
        out = tmp_path / str(number)
        grow_checkpoint(tmp_path / "a", out, target, LayoutRequest(tp=1, pp=1), execution)
        outputs.append(all_files(out))
    assert outputs[0] == outputs[1]


@pytest.mark.slow
@examples(12)
@given(cases(), st.sampled_from(["keep", "reset", "asymmetric"]))
def test_every_growth_carries_and_verifies(case: Case, how: Moments) -> None:
    """Into another layout at once, or growing first: the same bits, and verify derives them."""
    if case.refused:
        return
    target = replace(case.target, moments=how, vocab=None)
    single = Layout(1, 1, 1, (target.layers or case.config.layers,))
    with TemporaryDirectory() as folder:
        a, grown, moved, once = (Path(folder, name) for name in ("a", "grown", "moved", "once"))
        make_checkpoint(a, case.config, case.layout, optimizer=True)
        grow_checkpoint(a, grown, target, as_request(single))
        grow_checkpoint(grown, moved, request=as_request(case.new_layout))
        grow_checkpoint(a, once, target, as_request(case.new_layout))
        two_steps, one_step = states(moved), states(once)
        for state, name in ((kind, name) for kind in one_step for name in one_step[kind]):
            rows = case.config.vocab if name in ("embedding", "head") else None
            found, wanted = one_step[state][name], two_steps[state][name]
            assert same_bits(found[:rows], wanted[:rows]), (state, name)
        with open_megatron(a) as source, open_megatron(once) as result:
            checks = {check.name: check for check in verify(source, result, Verification())}
        assert checks["elements"].passed, checks["elements"].detail
        assert "weight, exp_avg, exp_avg_sq values" in checks["elements"].detail
        assert checks["function"].passed, checks["function"].detail


def alter(content: Any) -> None:
    content["optimizer"]["state"][2]["exp_avg_sq"][3, 1] += 1e-9


def remove(content: Any) -> None:
    del content["optimizer"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (alter, "exp_avg_sq of query differs in [0, 0, 0, 3, 1]"),
        (remove, "has no exp_avg, exp_avg_sq"),
    ],
)
def test_verify_finds_a_state_that_was_changed(change: Any, says: str, tmp_path: Path) -> None:
    """All sums are right again: only deriving the state anew can tell."""
    a, b = tmp_path / "a", tmp_path / "b"
    make_checkpoint(a, "llama", optimizer=True)
    accepted("expand", a, b, "--ffn-hidden-size", 24, "--method", "zero")
    accepted("verify", a, b)
    edit_all(b, change)
    outcome = flmgrow("verify", a, b)
    assert outcome.code == 1
    (line,) = [line for line in outcome.out.splitlines() if "elements" in line]
    assert line.startswith("DIFFERENT")
    assert says in line


def test_no_optimizer_is_recorded(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    accepted("reshard", tmp_path / "a", tmp_path / "b", "--tp", 2, "--no-optimizer")
    manifest = read_manifest(tmp_path / "b")
    assert manifest is not None
    assert manifest.optimizer == "dropped"
    assert manifest.dropped[:2] == ("optimizer", "opt_param_scheduler")
    for file in rank_files(tmp_path / "b"):
        content = torch.load(file, weights_only=False)
        assert not {"optimizer", "opt_param_scheduler"} & content.keys()
    accepted("verify", tmp_path / "a", tmp_path / "b")


def test_an_interrupted_run_is_not_finished_with_other_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the ranks kept, the other half reset: the journal must not allow that."""
    config = CONFIGS["llama"]
    make_checkpoint(tmp_path / "a", config, even(config, 2), optimizer=True)
    write: Any = Executor._write
    written: list[object] = []

    def fail_at_the_second(self: Executor, *arguments: Any) -> None:
        if written:
            raise StorageError("the disk is full")
        written.append(write(self, *arguments))

    monkeypatch.setattr(Executor, "_write", fail_at_the_second)
    command = ("expand", tmp_path / "a", tmp_path / "b", "--ffn-hidden-size", 24)
    assert flmgrow(*command).code != 0
    monkeypatch.setattr(Executor, "_write", write)
    for other in (("--optimizer", "reset"), ("--no-optimizer",)):
        outcome = flmgrow(*command, *other)
        assert outcome.code == 5, outcome
        assert re.search("another plan: .*optimizer", outcome.err), outcome.err
    accepted(*command)


def test_the_plan_counts_the_state(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    with open_megatron(tmp_path / "a") as opened:
        sizes = [
            make_plan(opened, Target(ffn=24), LayoutRequest(), drop_optimizer=drop).total_bytes
            for drop in (False, True)
        ]
    assert sizes[0] > 2.5 * sizes[1]
