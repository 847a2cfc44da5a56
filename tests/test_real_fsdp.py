"""Megatron's own FSDP: what ranks save is what they hold, and what is written, ranks go on with.

megatron-core trains, cuts, saves and loads (``support/megatron_fsdp.py``). What its ranks held of
the same tensors is written whole, as ``torch_dist``, and read beside what they saved; and it is
compared with what other ranks hold that have loaded what flmgrow wrote, before and after a step.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from growing import same_bits
from optimizer_states import states
from pico import CONFIGS, even, make_checkpoint
from pico_dist import save_dist
from repository import ROOT
from stage_runs import NEWER

from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.model.config import ModelConfig

pytestmark = pytest.mark.slow  # megatron-core trains and saves

MODELS = {
    "llama": replace(CONFIGS["llama"], layers=2, hidden=16, ffn=24, kv_groups=2),
    "gpt": replace(CONFIGS["gpt"], layers=2, hidden=16, ffn=24),
}
"""Of sizes that megatron-core 0.16 can cut: of others it asks for parts of rows, and fails."""

QKV = "model.module.decoder.layers.0.self_attention.linear_qkv.weight"
GATE = "model.module.decoder.layers.0.mlp.linear_fc1.weight_w"
LAYERS = "decoder.layers."
STATES = ("param", "exp_avg", "exp_avg_sq")
FUSED = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


needs_newer = pytest.mark.skipif(
    not NEWER, reason="FLMGROW_MEGATRON_019 does not name a folder with megatron-core 0.19 in it"
)
CORES = ["0.16", pytest.param("0.19", marks=needs_newer)]


def run_megatron(ranks: int, *arguments: object, core: str = "0.16", engine: bool = False) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "tests/support/megatron_fsdp.py", *map(str, arguments)]
    beside = [NEWER] if core == "0.19" else []
    beside += [str(ROOT / "tests" / "support" / "engine")] if engine else []
    paths = os.pathsep.join([*beside, str(ROOT / "examples"), str(ROOT)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def saved(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have trained and saved; the model that they began with lies beside."""
    place = tmp_path_factory.mktemp("saved")
    legacy = make_checkpoint(place / "legacy", model, dtype="bfloat16")
    run_megatron(2, "save", legacy, place / "fsdp")
    return place / "fsdp"


def stacked(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays as ``torch_dist`` has them: norms in the layers behind them, layers stacked."""
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(LAYERS):
            _, _, rest = name.removeprefix(LAYERS).partition(".")
            for local, fused in FUSED.items():
                rest = rest.replace(local, fused)
            found.setdefault(LAYERS + rest, []).append(array)
        else:
            found[name] = array
    return {k: torch.stack(v) if isinstance(v, list) else v for k, v in found.items()}


def as_dist(fsdp: Path, path: Path) -> Path:
    """Write what the ranks held as ``torch_dist``."""
    full = torch.load(fsdp / "full.pt")
    (legacy,) = (fsdp.parent / "legacy").rglob("*.pt")
    args = torch.load(legacy, weights_only=False)["args"]
    args.transformer_impl = "local"
    state = {name: array.bfloat16() for name, array in stacked(full["param"]).items()}
    for kind in STATES:
        state |= {f"optimizer.state.{kind}.{k}": v for k, v in stacked(full[kind]).items()}
    groups = {"param_groups": [{"lr": 1e-2, "step": 3}]}
    optimizer = {"optimizer": groups, "param_state_sharding_type": "fully_reshardable"}
    return save_dist(path, args, state, {}, optimizer=optimizer)


def assert_held(saved: Path, place: Path) -> None:
    """What is read is what the ranks held."""
    found, wanted = states(saved), states(as_dist(saved, place))
    assert list(found) == list(wanted) == ["weight", "master", "exp_avg", "exp_avg_sq"]
    for kind in wanted:
        for name, values in wanted[kind].items():
            assert same_bits(found[kind][name], values), (kind, name)


def test_megatron_saves_and_flmgrow_reads(saved: Path, model: ModelConfig, tmp_path: Path) -> None:
    listed = read_metadata(next(saved.glob("iter_*"))).tensors
    cuts = [chunk.offsets[0] for chunk in listed[QKV].chunks]
    assert any(
        cut % ((model.queries_per_group + 2) * model.head_dim) for cut in cuts
    )  # in the middle of a group
    assert_held(saved, tmp_path / "dist")
    accepted("reshard", saved, tmp_path / "out", "--tp", "2", "--format", "torch_dist")
    accepted("verify", saved, tmp_path / "out")


def rewritten(saved: Path, place: Path, tp: int) -> Path:
    """Write the same by way of a legacy checkpoint, which knows nothing of its cuts, on two stages
    and another number of tensor ranks.
    """
    other = ("--tp", 3 - tp, "--pp", 2, "--format", "megatron")
    accepted("reshard", saved, place / "legacy", *other)
    single = ("--tp", tp, "--pp", 1, "--format", "fsdp_dtensor")
    accepted("reshard", place / "legacy", place / "fsdp", *single)
    return place / "fsdp"


@pytest.fixture(scope="module")
def written(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewritten(saved, tmp_path_factory.mktemp("written"), tp=1)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 1])
def test_flmgrow_writes_and_megatron_goes_on(
    saved: Path, written: Path, ranks: int, tmp_path: Path
) -> None:
    """How sums round depends on the number of ranks: one takes the step that one takes from what
    megatron-core saved.
    """
    legacy, as_saved = saved.parent / "legacy", saved
    run_megatron(ranks, "load", legacy, written, tmp_path)
    if ranks == 1:
        as_saved = tmp_path / "as-saved"
        as_saved.mkdir()
        run_megatron(ranks, "load", legacy, saved, as_saved)
    assert_went_on(tmp_path, saved, as_saved)


@pytest.mark.long
@needs_newer
@pytest.mark.parametrize(("saves", "loads"), [("0.19", "0.19"), ("0.16", "0.19"), ("0.19", "0.16")])
def test_another_megatron_core_goes_on(tmp_path: Path, saves: str, loads: str) -> None:
    legacy = make_checkpoint(tmp_path / "legacy", MODELS["llama"], dtype="bfloat16")
    for name in ("fsdp", "written", "loaded"):
        (tmp_path / name).mkdir()
    run_megatron(2, "save", legacy, tmp_path / "fsdp", core=saves)
    assert_held(tmp_path / "fsdp", tmp_path / "dist")
    written = rewritten(tmp_path / "fsdp", tmp_path / "written", tp=1)
    run_megatron(2, "load", legacy, written, tmp_path / "loaded", core=loads)
    assert_went_on(tmp_path / "loaded", tmp_path / "fsdp", tmp_path / "fsdp")


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "ffn"), [(4, 24), (2, 20)])
def test_ranks_without_rows_of_an_array_go_on(tmp_path: Path, ranks: int, ffn: int) -> None:
    """One rank has all of a gate, two have queries, keys and values."""
    model = replace(MODELS["llama"], ffn=ffn)
    legacy = make_checkpoint(tmp_path / "legacy", model, dtype="bfloat16")
    for name in ("fsdp", "written", "loaded"):
        (tmp_path / name).mkdir()
    run_megatron(ranks, "save", legacy, tmp_path / "fsdp")
    listed = read_metadata(next((tmp_path / "fsdp").glob("iter_*"))).tensors
    assert [len(listed[name].chunks) for name in (GATE, QKV)] == [1, 2]
    assert_held(tmp_path / "fsdp", tmp_path / "dist")
    written = rewritten(tmp_path / "fsdp", tmp_path / "written", tp=1)
    run_megatron(ranks, "load", legacy, written, tmp_path / "loaded")
    assert_went_on(tmp_path / "loaded", tmp_path / "fsdp", tmp_path / "fsdp")


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_layers_and_adam_of_transformer_engine_go_on(tmp_path: Path, name: str) -> None:
    """Norms are named as part of what is behind them, and param groups count steps. A stand-in
    computes, on a CPU; megatron-core names, cuts, saves and loads.
    """
    legacy = make_checkpoint(tmp_path / "legacy", MODELS[name], dtype="bfloat16", naming="fused")
    (file,) = legacy.rglob("*.pt")
    content = torch.load(file, weights_only=False)
    kept = {k: v for k, v in content["model"].items() if not k.endswith("_extra_state")}
    torch.save({**content, "model": kept}, file)
    for place in ("fsdp", "written", "loaded"):
        (tmp_path / place).mkdir()
    run_megatron(2, "save", legacy, tmp_path / "fsdp", engine=True)
    assert_held(tmp_path / "fsdp", tmp_path / "dist")
    listed = read_metadata(next((tmp_path / "fsdp").glob("iter_*")))
    assert QKV.replace("qkv.weight", "qkv.layer_norm_weight") in listed.tensors
    assert not [item for item in listed.tensors if item.endswith(".step")]
    written = rewritten(tmp_path / "fsdp", tmp_path / "written", tp=1)
    run_megatron(2, "load", legacy, written, tmp_path / "loaded", engine=True)
    counts = torch.load(tmp_path / "loaded" / "full.pt")["step"].values()
    assert {count.item() for count in counts} == {3}
    assert_went_on(tmp_path / "loaded", tmp_path / "fsdp", tmp_path / "fsdp")


@pytest.mark.long
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("ranks", "tp"), [(2, 2), (4, 1)])
def test_tensor_ranks_go_on_as_well(tmp_path: Path, ranks: int, tp: int, core: str) -> None:
    """One replica of two tensor ranks, and two, which load what was written for ``tp``."""
    model = replace(MODELS["llama"], vocab=64)  # without padding, which is another on other ranks
    legacy = make_checkpoint(
        tmp_path / "legacy", model, even(model, tp=2), dtype="bfloat16", sequence_parallel=False
    )
    for name in ("saved", "written", "loaded"):
        (tmp_path / name).mkdir()
    run_megatron(ranks, "save", legacy, tmp_path / "saved", core=core)
    written = rewritten(tmp_path / "saved", tmp_path / "written", tp=tp)
    run_megatron(ranks, "load", legacy, written, tmp_path / "loaded", core=core)
    assert_went_on(tmp_path / "loaded", tmp_path / "saved", tmp_path / "saved")


def assert_went_on(loaded: Path, saved: Path, continued: Path) -> None:
    """A run has begun with other values, has taken every one of them back, and its next step is
    the same.
    """
    before, there, later = (
        torch.load(loaded / f"{name}.pt") for name in ("before", "full", "next")
    )
    kept, wanted = torch.load(saved / "full.pt"), torch.load(continued / "next.pt")
    assert differences(kept, there) == set()
    assert differences(wanted, later) == set()
    everything = {(kind, name) for kind in (*STATES, "step") for name in kept[kind]}
    assert differences(kept, before) == everything
    stepped = {(kind, name) for kind, name in everything if kind != "step"}
    assert stepped <= differences(kept, later)  # where a rank has no rows, torch counts no step


def differences(a: dict[str, Any], b: dict[str, Any]) -> set[tuple[str, str]]:
    """By kind and name, what two runs hold otherwise."""
    assert a["groups"] == b["groups"]
    assert [list(a[kind]) == list(b[kind]) for kind in (*STATES, "step")] == [True] * 4
    return {
        (kind, name)
        for kind in (*STATES, "step")
        for name, values in a[kind].items()
        if not torch.equal(values, b[kind][name])
    }
