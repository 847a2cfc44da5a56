"""The claim is about Megatron, so Megatron judges: megatron-core trains, flmgrow grows, it loads.

Every checkpoint goes through stock ``torch.load`` and megatron-core's strict ``load_state_dict``,
on as many processes as its layout has ranks, and its own forward gives the logits. How close they
must be depends on what was rounded. Weights were trained in float32, and some methods scale them:
where the result is stored in float32 too, logits agree as well as float32 can. Stored in float64
nothing is rounded, nor where a method only copies and puts zeros; megatron-core, computing in
float64, must then agree to 1e-10.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_runs import ALL, GROUPS, UNITS, model_ranks, torchrun_batch
from torch import Tensor

from flmgrow.cli.app import run
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.model.forward import logits as reference_logits
from flmgrow.surgery.weights import CheckpointWeights

pytestmark = pytest.mark.slow  # one batch of megatron-core's runs, of two minutes, serves all

VOCAB = 300
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
LAYOUTS = {"tp4": "--tp 4 --pp 1", "vpp": "--tp 1 --pp 2 --vpp 2"}


@dataclass(frozen=True)
class Case:
    """A checkpoint: the command that makes it, and the dtypes in which its logits must agree."""

    source: str
    command: str
    dtypes: tuple[str, ...] = ("float32",)


BOTH = ("float32", "float64")
# In the order in which they can be made: a source is one of the two trained or an earlier line.
CASES: dict[str, Case] = {
    # All four dimensions at once. Float64 is for results in which nothing had to be rounded.
    **{
        f"llama {method} {layout} {stored}": Case(
            "llama",
            f"expand {ALL} {GROUPS} --method {method} {LAYOUTS[layout]} --dtype {stored}",
            (stored,),
        )
        for method, layout, stored in product(("zero", "copy"), LAYOUTS, BOTH)
    },
    **{
        f"gpt {method} {layout} {stored}": Case(
            "gpt", f"expand {ALL} --method {method} {LAYOUTS[layout]} --dtype {stored}", (stored,)
        )
        for (method, layout), stored in product((("zero", "vpp"), ("copy", "tp4")), BOTH)
    },
    # More queries in each group, which only rearranges and puts zeros: exact as it is stored.
    "llama queries": Case("llama", f"expand {UNITS} --method zero {LAYOUTS['tp4']}", BOTH),
    # Masks, which Megatron knows nothing of, put into the weights. Exact as it is stored.
    "llama masked": Case("llama", f"expand {UNITS} {GROUPS} --method mask {LAYOUTS['tp4']}", ()),
    "llama baked": Case("llama masked", "bake --value 0", BOTH),
    "llama baked at once": Case("llama", f"expand {UNITS} --bake {LAYOUTS['vpp']}", BOTH),
    # The same weights elsewhere, and back again.
    "tp4": Case("llama", f"reshard {LAYOUTS['tp4']}", BOTH),
    "uneven": Case("tp4", "reshard --tp 2 --pp 2 --pipeline-layers 1,3", BOTH),
    "back": Case("uneven", "reshard --pipeline-layers 2,2", BOTH),
    "vpp": Case("llama", f"reshard {LAYOUTS['vpp']}", BOTH),
    "back from vpp": Case("vpp", "reshard --tp 2 --vpp 1", BOTH),
}
VERDICTS = [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]
Logits = Mapping[tuple[str, str], Tensor]


def rank_contents(checkpoint: Path) -> dict[str, Any]:
    """Every rank's file, as stock torch reads it. It imports the classes that are named there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            file.parent.name: torch.load(file, weights_only=False)
            for file in checkpoint.glob("iter_*/*/model_optim_rng.pt")
        }


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two trained models, TP2 x PP2, and what flmgrow makes of them."""
    root = tmp_path_factory.mktemp("real")
    made = {arch: root / arch for arch in ("llama", "gpt")}
    options = ["--tp", "2", "--pp", "2", "--steps", "20"]
    torchrun_batch(4, [["train", str(out), "--arch", arch, *options] for arch, out in made.items()])
    for number, (name, case) in enumerate(CASES.items()):
        made[name] = root / f"{number}"
        command, *rest = case.command.split()
        assert run([command, str(made[case.source]), str(made[name]), *rest]) == 0, name
    made["forgotten epsilon"] = forget_epsilon(
        made["llama zero tp4 float64"], root / "forgotten", rank_contents(made["llama"])
    )
    return made


def forget_epsilon(grown: Path, copy: Path, source: Mapping[str, Any]) -> Path:
    """Copy a checkpoint with the source's epsilon instead of its own."""
    shutil.copytree(grown, copy)
    (epsilon,) = {content["args"].norm_epsilon for content in source.values()}
    for rank, content in rank_contents(copy).items():
        assert content["args"].norm_epsilon == pytest.approx(epsilon * 64 / 96, rel=1e-12)
        content["args"].norm_epsilon = epsilon
        (file,) = copy.glob(f"iter_*/{rank}/model_optim_rng.pt")
        torch.save(content, file)
    return copy


@pytest.fixture(scope="module")
def logits(
    checkpoints: Mapping[str, Path], tokens: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Logits:
    """What megatron-core computes from every checkpoint; strictly loaded, or this fails."""
    root = tmp_path_factory.mktemp("logits")
    torch.save(tokens, root / "tokens.pt")
    given = ["--tokens", str(root / "tokens.pt")]
    wanted = [*VERDICTS, *product(("llama", "gpt"), BOTH), ("forgotten epsilon", "float64")]
    files = {key: root / f"{number}.pt" for number, key in enumerate(wanted)}
    commands: dict[int, list[list[str]]] = {}
    for (name, dtype), file in files.items():
        checkpoint = checkpoints[name]
        command = ["logits", str(checkpoint), str(file), *given, "--dtype", dtype]
        commands.setdefault(model_ranks(checkpoint), []).append(command)
    for ranks, group in commands.items():
        torchrun_batch(ranks, group)
    return {
        key: torch.load(file, weights_only=True)["logits"][..., :VOCAB]
        for key, file in files.items()
    }


def difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def trained_source(name: str) -> str:
    while name in CASES:
        name = CASES[name].source
    return name


@pytest.mark.parametrize(("name", "dtype"), VERDICTS)
def test_megatron_computes_what_it_did(logits: Logits, name: str, dtype: str) -> None:
    before, after = logits[trained_source(name), dtype], logits[name, dtype]
    assert after.dtype == getattr(torch, dtype)
    assert before.abs().max() > 1
    assert difference(before, after) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("arch", "dtype"), [*product(("llama", "gpt"), BOTH)])
def test_the_reference_forward_is_megatrons(
    checkpoints: Mapping[str, Path], logits: Logits, tokens: Tensor, arch: str, dtype: str
) -> None:
    with open_megatron(checkpoints[arch]) as checkpoint, torch.no_grad():
        weights = CheckpointWeights(checkpoint, getattr(torch, dtype))
        ours = reference_logits(checkpoint.config, weights, tokens)[..., :VOCAB]
    assert difference(ours, logits[arch, dtype]) <= TOLERANCE[dtype]


def test_a_forgotten_epsilon_would_show(logits: Logits) -> None:
    before = logits["llama", "float64"]
    assert difference(before, logits["forgotten epsilon", "float64"]) > 1000 * TOLERANCE["float64"]


def test_masks_are_no_business_of_megatron(checkpoints: Mapping[str, Path]) -> None:
    assert json.loads((checkpoints["llama masked"] / "flmgrow.json").read_text())["masks"]
    assert not json.loads((checkpoints["llama baked"] / "flmgrow.json").read_text())["masks"]


def tensors(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in content["model"].items():
        if isinstance(value, Tensor):
            yield key, value


@pytest.mark.parametrize("name", ["back", "back from vpp"])
def test_resharding_there_and_back_is_bit_equal(checkpoints: Mapping[str, Path], name: str) -> None:
    before, after = rank_contents(checkpoints["llama"]), rank_contents(checkpoints[name])
    assert before.keys() == after.keys()
    for rank, content in before.items():
        old, new = dict(tensors(content)), dict(tensors(after[rank]))
        assert old.keys() == new.keys()
        for key, value in old.items():
            rows = real_rows(key, rank) if name == "back from vpp" else slice(None)
            assert torch.equal(value[rows].view(torch.int32), new[key][rows].view(torch.int32)), key


def real_rows(key: str, rank: str) -> slice:
    """The rows of a table cut in two that are no padding: VPP's single tensor rank has no room."""
    if key not in ("embedding.word_embeddings.weight", "output_layer.weight"):
        return slice(None)
    return slice(256 if rank.startswith("mp_rank_00") else VOCAB - 256)


@pytest.mark.parametrize("name", ["tp4", "gpt zero vpp float32", "llama baked"])
def test_stock_torch_reads_what_is_written(checkpoints: Mapping[str, Path], name: str) -> None:
    for content in rank_contents(checkpoints[name]).values():
        assert content["iteration"] == content["args"].iteration == 20
        assert content["checkpoint_version"] == 3.0
