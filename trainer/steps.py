"""One optimizer step: the batch forward and backward through megatron-core's pipeline schedules.

The loss of a batch is the mean over all tokens that count, whatever micro-batch, replica or signal
they are in: sums and counts are divided once, at the end. So it does not depend on the layout, and
neither do the gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flmgrow.trainer.data.batches import MicroBatches
from flmgrow.trainer.data.samples import attention_mask, is_packed
from flmgrow.trainer.megatron.core import get_forward_backward_func, parallel_state
from flmgrow.trainer.ranks.agreement import summed

_SIGNALS = ("language", "teacher")


@dataclass(frozen=True)
class Losses:
    """Mean losses of a batch, in nats per token that counts; a part without tokens has None.

    ``sources`` has those of each source's samples, if these were summed apart.
    """

    mean: float
    language: float | None
    teacher: float | None
    sources: Sequence[float | None] = ()

    def by(self, names: Sequence[str]) -> dict[str, float]:
        """Return the loss of each source that has tokens, by their ``names``."""
        return {
            name: loss for name, loss in zip(names, self.sources, strict=True) if loss is not None
        }


def run_batch(
    models: Sequence[Any],
    micro_batches: MicroBatches,
    *,
    sequence_length: int,
    forward_only: bool = False,
    sources: int = 0,
) -> Tensor:
    """Run a replica's ``micro_batches``, and add up gradients unless ``forward_only``.

    Returns this rank's share of what :func:`losses_of` makes losses of: for each signal the sum of
    losses and the number of tokens that count (float64), and then for each of so many ``sources``:
    (signals + sources, 2), flat.
    """
    device = torch.cuda.current_device()
    results = get_forward_backward_func()(
        forward_step_func=partial(_forward, sources=sources),
        data_iterator=[_on_device(micro_batches, device) for _ in models],
        model=list(models),
        num_microbatches=len(micro_batches),
        seq_length=sequence_length,
        micro_batch_size=len(micro_batches[0]["tokens"]),
        forward_only=forward_only,
    )
    sums = torch.zeros(2 * (len(_SIGNALS) + sources), dtype=torch.float64, device=device)
    # Tensor ranks of the last stage have the same losses: one of them tells.
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        for result in results:
            sums += result["sums"]
    return sums


def losses_of(sums: Sequence[float]) -> Losses:
    """Return the losses behind sums over all ranks."""
    totals, counts = sums[::2], sums[1::2]
    means = [total / count if count else None for total, count in zip(totals, counts, strict=True)]
    signals = len(_SIGNALS)  # which have all tokens; the sources have them once more
    mean = sum(totals[:signals]) / max(1.0, sum(counts[:signals]))
    language, teacher, *sources = means
    return Losses(mean, language, teacher, sources)


@torch.no_grad()
def loss_of(models: Sequence[Any], micro_batches: MicroBatches) -> float:
    """Return the loss of a batch, of which every replica has its ``micro_batches``.

    On all ranks at once; no gradient is taken.
    """
    length = micro_batches[0]["tokens"].shape[1]
    sums = run_batch(models, micro_batches, sequence_length=length, forward_only=True)
    return losses_of(summed(sums.tolist())).mean


def _on_device(micro_batches: MicroBatches, device: Any) -> Iterator[dict[str, Any]]:
    """Yield micro-batches as tensors, with the mask of rows that hold several texts, if any do.

    That is asked of the arrays, since a device would have to be waited for.
    """
    for batch in micro_batches:
        moved = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        packed = is_packed(batch["positions"])
        yield {**moved, "mask": attention_mask(moved["positions"]) if packed else None}


def _forward(batches: Iterator[dict[str, Any]], model: Any, *, sources: int) -> Any:
    """Run one micro-batch, as megatron-core's schedules ask for it."""
    batch = next(batches)
    counts = batch["loss_mask"].float()

    def loss_of(losses: Tensor) -> Any:
        counted = losses.float() * counts
        sums = [_by_signal(counted, counts, batch["taught"])]
        if sources:
            sums.append(_by_source(counted, counts, batch["source"], sources))
        return counted.sum(), counts.sum().to(torch.int), {"sums": torch.cat(sums)}

    given = (batch["tokens"], batch["positions"], batch["mask"])
    return model(*given, labels=batch["labels"]), loss_of


@torch.no_grad()
def _by_signal(losses: Tensor, counts: Tensor, teacher: Tensor) -> Tensor:
    """Return loss and tokens of each signal; ``teacher`` says which rows are the teacher's."""
    rows = _by_row(losses, counts)
    return torch.cat([rows[~teacher].sum(0), rows[teacher].sum(0)])


@torch.no_grad()
def _by_source(losses: Tensor, counts: Tensor, source: Tensor, sources: int) -> Tensor:
    """Return loss and tokens of each source; ``source`` (rows,) has its number for each row."""
    rows = _by_row(losses, counts)
    return rows.new_zeros(sources, 2).index_add_(0, source, rows).flatten()


def _by_row(losses: Tensor, counts: Tensor) -> Tensor:
    """Return loss and tokens of each row (rows, 2)."""
    return torch.stack([losses.double().sum(1), counts.double().sum(1)], dim=1)
