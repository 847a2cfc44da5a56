"""The first step of the trainer on an imported model: transformers' loss, and its gradient.

Both compute from the same float32 weights. transformers does so in float64, which stands for the
true value; the trainer in float32, as it trains. So what separates them is the trainer's rounding.
It was seen to be up to 1e-7 of the loss, and 1.2e-6 of the gradient's norm; the tolerance is some
ten times that, since another machine sums in another order. A wrong norm, factor or rotation shows
itself in the third digit.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import metrics, write_stage
from torch.nn.functional import cross_entropy
from trained_here import small, trained_in

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from stage_runs import make_data
from transformers_models import CONFIGS, MEGATRON_LACKS, make_model

from flmgrow.trainer.data.batches import Batches, Batching
from flmgrow.trainer.data.stage_data import open_data
from flmgrow.trainer.stage.file import read_stage

IDS, BATCH = 257, 4
LOSS, NORM = 1e-6, 1e-5
"""How far the trainer's may be from the true ones, relative: gradients sum and cancel more."""

pytestmark = pytest.mark.slow  # each family is trained for a step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def _stage(data: Path, model: Path) -> dict[str, Any]:
    content = small(
        data,
        training={"steps": 1, "batch": BATCH, "micro_batch": 2},
        checkpoint={"load": str(model)},
        optimizer={"clip_grad": 1e9},
    )
    del content["model"]
    return content


def _expected(model: Any, stage: Path) -> tuple[float, float]:
    """Return the loss of a stage's first batch, and the norm of its gradient, in float64."""
    batching = Batching(BATCH, BATCH)
    (batch,) = next(iter(Batches(open_data(read_stage(stage).data).training, batching)))
    tokens, labels = (torch.from_numpy(batch[name]).long() for name in ("tokens", "labels"))
    assert (batch["loss_mask"] == 1).all()
    logits = model.double()(tokens).logits
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.autograd.backward(loss)
    squares = [(p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None]
    return loss.item(), float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in MEGATRON_LACKS])
def test_a_step_begins_where_transformers_is(name: str, data: Path, tmp_path: Path) -> None:
    model = make_model(name, torch.float32, vocab_size=IDS)
    model.save_pretrained(tmp_path / "hf")
    content = _stage(data, tmp_path / "hf")
    loss, norm = _expected(model, write_stage(tmp_path / "run", content))
    trained_in(tmp_path / "run", content)
    (step,) = metrics(tmp_path / "run" / "stage.yaml")
    assert step["loss"] == pytest.approx(loss, rel=LOSS)
    assert step["grad_norm"] == pytest.approx(norm, rel=NORM)


def test_another_model_is_told_apart(data: Path, tmp_path: Path) -> None:
    """The control: a gain that is a thousandth off is seen in the loss."""
    model = make_model("llama", torch.float32, vocab_size=IDS)
    model.save_pretrained(tmp_path / "hf")
    content = _stage(data, tmp_path / "hf")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.001)
    loss, _ = _expected(model, write_stage(tmp_path / "run", content))
    trained_in(tmp_path / "run", content)
    (step,) = metrics(tmp_path / "run" / "stage.yaml")
    assert step["loss"] != pytest.approx(loss, rel=10 * LOSS)
