"""What megatron-core computes with masks, in any layout: asked of it in processes of its own.

Run under torchrun with a file of jobs, each a checkpoint laid out for so many ranks as there are.
For every job and every value of its masks this builds the model, loads the rank's file strictly,
and keeps logits, and losses and gradient norms of a few steps, in a file the test reads. A job may
name a fault, which is put into the trainer while it runs: what finds no fault proves nothing.
"""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[3]
for folder in ("examples", "tests/support"):
    sys.path.insert(0, str(ROOT / folder))

from legacy_checkpoint import Run, load_legacy  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.distributed import finalize_model_grads  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from tiny_steps import (  # noqa: E402
    forward_step,
    micro_batches,
    optimizer_and_schedule,
    replicated,
)

from flmgrow.formats.history.manifest import masks_of  # noqa: E402
from flmgrow.formats.opening import open_checkpoint  # noqa: E402
from flmgrow.model.masks import Dimension  # noqa: E402
from flmgrow.trainer.megatron import (  # noqa: E402
    attention,
    model,
    norms,
)
from flmgrow.trainer.megatron import layer_spec as spec  # noqa: E402
from flmgrow.trainer.megatron import live_masks as masks  # noqa: E402
from flmgrow.trainer.megatron.masked_modules import scaled_branch  # noqa: E402

Fault = Callable[[], AbstractContextManager[Any]]


def plain_norms() -> AbstractContextManager[Any]:
    """Norms that pass over masked channels, but do not weigh their statistics."""

    def unweighted(x: Any, gain: Any, bias: Any, mask: Any, eps: float) -> Any:
        return honest(x, gain, bias, torch.ones_like(mask), eps)

    honest = norms._masked_norm
    return mock.patch.object(norms, "_masked_norm", unweighted)


def first_part_on_every_rank() -> AbstractContextManager[Any]:
    """Tensor ranks that all take the first rank's part of a mask."""
    honest = masks.LiveMask.part
    return mock.patch.object(masks.LiveMask, "part", lambda mask, _, parts: honest(mask, 0, parts))


def multiplier_left_out() -> AbstractContextManager[Any]:
    """Branches of fresh layers with their mask, but without the multiplier of all branches."""

    def scaled(multiplier: float, mask: Any) -> Any:
        return scaled_branch(multiplier if mask is None else 1.0, mask)

    return mock.patch.object(spec, "scaled_branch", scaled)


FAULTS: Mapping[str, Fault] = {
    "none": nullcontext,
    "plain norms": plain_norms,
    "first part on every rank": first_part_on_every_rank,
    "multiplier of masked branches left out": multiplier_left_out,
    "layers counted from the stage": lambda: mock.patch.object(
        spec, "get_transformer_layer_offset", return_value=0
    ),
    "gradients of norms not summed": lambda: mock.patch.object(
        norms, "_mark_for_sequence_parallelism"
    ),
    "xpos left out": lambda: mock.patch.object(
        attention, "xpos_scale", lambda length, size, **_: torch.ones(length, size)
    ),
}


def run_job(job: Mapping[str, Any], tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Return what a job computes at each of its mask values."""
    path, tp, pp, vpp = Path(job["checkpoint"]), job["tp"], job["pp"], job["vpp"]
    dtype = getattr(torch, job["dtype"])
    with open_checkpoint(path) as opened:
        config, rows, declared = opened.config, opened.padded_vocab, masks_of(opened)
    model.start_parallel(tp=tp, pp=pp, vpp=vpp)
    settings = model.transformer_config(
        config, tp=tp, pp=pp, vpp=vpp, sequence_parallel=job["sp"], dtype=dtype
    )
    settings.finalize_model_grads_func = finalize_model_grads
    live = masks.LiveMasks(declared, config, dtype)
    chunks = model.build_model_chunks(config, settings, rows, live)
    kept = []
    for values in job["values"]:
        moved = {dimension: declared[dimension].at(values[dimension]) for dimension in declared}
        live.move_to(moved)
        load_legacy(path, chunks)
        result: dict[str, Any] = {"logits": model.full_logits(chunks, tokens)}
        if all(value == 1.0 for value in values.values()) and not job["steps"]:
            ready = masks.LiveMasks(moved, config, dtype)
            plain = model.build_model_chunks(config, settings, rows, ready)
            load_legacy(path, plain)
            result["stock"] = compared_with_stock(config, settings, plain, chunks)
            result["unmasked logits"] = model.full_logits(plain, tokens)
        if job["steps"]:
            result |= train(chunks, job, config.vocab)
        kept.append(result)
    parallel_state.destroy_model_parallel()
    return kept


def compared_with_stock(config: Any, settings: Any, plain: list[Any], live: list[Any]) -> Any:
    """Return modules and state keys: of megatron-core's own spec, all masks at 1, and masked."""

    def stock_spec(*_: Any) -> Any:
        spec = get_gpt_layer_local_spec(
            qk_layernorm=config.qk_norm, normalization=settings.normalization
        )
        # The one exception, in masked and other models alike: test_attention.py.
        spec.submodules.self_attention.submodules.core_attention = attention.FusedAttention
        return spec

    # Without Apex, megatron-core's own norms refuse sequence parallelism; modules are the same.
    whole = mock.patch.object(settings, "sequence_parallel", False)
    with whole, mock.patch.object(model, "block_spec", stock_spec):
        stock = model.build_model_chunks(config, settings, plain[0].vocab_size)
    return [
        {
            "modules": [[name, type(part).__name__] for name, part in chunks[0].named_modules()],
            "keys": list(chunks[0].state_dict()),
            "sharded": sorted(chunks[0].sharded_state_dict()),
        }
        for chunks in (stock, plain, live)
    ]


def train(chunks: list[Any], job: Mapping[str, Any], vocab: int) -> dict[str, list[float]]:
    """Return losses and gradient norms of the job's steps."""
    tp, pp, world = job["tp"], job["pp"], torch.distributed.get_world_size()
    run = Run(
        Path(), tp, pp, job["vpp"], None, world, 10, seed=1, optimizer=True, stop=0, length=16,
        micro_batches=2, warmup=1, learning_rate=1e-4,
    )  # fmt: skip
    models = replicated(chunks, run)
    optimizer, scheduler = optimizer_and_schedule(models, run)
    text = torch.randint(vocab, (1000,), generator=torch.Generator().manual_seed(0))
    losses, norms = [], []
    for step in range(job["steps"]):
        for wrapped in models:
            wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        found = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[micro_batches(text, run, step) for _ in models],
            model=models,
            num_microbatches=run.micro_batches // (world // (tp * pp)),
            seq_length=run.length,
            micro_batch_size=run.micro_batch,
            forward_only=False,
        )
        norms.append(float(optimizer.step()[1]))
        scheduler.step(increment=1)
        mean = torch.tensor([loss["lm loss"] for loss in found], dtype=torch.float64).mean()
        torch.distributed.all_reduce(mean, group=parallel_state.get_data_parallel_group())
        losses.append(mean.item() / parallel_state.get_data_parallel_world_size())
    return {"losses": losses, "norms": norms}


def main() -> None:
    """Run every job, and let the last rank keep the results."""
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.distributed.init_process_group("gloo")
    tokens = torch.tensor(request["tokens"])
    with mock.patch.object(torch.distributed, "init_process_group"):
        results = []
        for job in request["jobs"]:
            job["values"] = [
                {Dimension(name): value for name, value in values.items()}
                for values in job["values"]
            ]
            with FAULTS[job["fault"]]():
                results.append(run_job(job, tokens))
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        torch.save(results, sys.argv[2])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
