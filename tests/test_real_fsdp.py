"""What Megatron's own FSDP saves on two ranks is the model, and the optimizer, that they hold.

megatron-core trains, cuts and saves (``support/megatron_fsdp.py``); what its ranks held of the same
tensors is written whole, as ``torch_dist``, and read beside it.
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
from pico import CONFIGS, make_checkpoint
from pico_dist import save_dist
from repository import ROOT

from flmgrow.formats.dcp.metadata import read_metadata

pytestmark = pytest.mark.slow  # megatron-core trains and saves

MODELS = {
    "llama": replace(CONFIGS["llama"], layers=2, hidden=16, ffn=24, kv_groups=2),
    "gpt": replace(CONFIGS["gpt"], layers=2, hidden=16, ffn=24),
}
"""Of sizes that megatron-core 0.16 can cut: of others it asks for parts of rows, and fails."""

QKV = "model.module.decoder.layers.0.self_attention.linear_qkv.weight"
LAYERS = "decoder.layers."
FUSED = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def trained_by_fsdp(legacy: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "tests/support/megatron_fsdp.py", str(legacy), str(out)]
    paths = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


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
    for kind, arrays in full.items():
        state |= {f"optimizer.state.{kind}.{k}": v for k, v in stacked(arrays).items()}
    groups = {"param_groups": [{"lr": 1e-2, "step": 3}]}
    optimizer = {"optimizer": groups, "param_state_sharding_type": "fully_reshardable"}
    return save_dist(path, args, state, {}, optimizer=optimizer)


@pytest.mark.parametrize("model", MODELS)
def test_megatron_saves_and_flmgrow_reads(tmp_path: Path, model: str) -> None:
    config = MODELS[model]
    legacy = make_checkpoint(tmp_path / "legacy", config, dtype="bfloat16")
    fsdp = trained_by_fsdp(legacy, tmp_path / "fsdp")
    listed = read_metadata(next(fsdp.glob("iter_*"))).tensors
    cuts = [chunk.offsets[0] for chunk in listed[QKV].chunks]
    assert any(
        cut % ((config.queries_per_group + 2) * config.head_dim) for cut in cuts
    )  # in the middle of a group
    found, wanted = states(fsdp), states(as_dist(fsdp, tmp_path / "dist"))
    assert list(found) == list(wanted) == ["weight", "master", "exp_avg", "exp_avg_sq"]
    for kind in wanted:
        for name, values in wanted[kind].items():
            assert same_bits(found[kind][name], values), (kind, name)
    accepted("reshard", fsdp, tmp_path / "out", "--tp", "2")
    accepted("verify", fsdp, tmp_path / "out")
