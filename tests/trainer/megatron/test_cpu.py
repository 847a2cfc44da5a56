"""What stands in for CUDA must leave the rest of torch, and who else uses it, as they are."""

import subprocess
import sys

AFTER = """
import torch
from flmgrow.trainer.megatron import cpu
assert cpu.install() or torch.cuda.is_available()
with torch.device("meta"):
    made = [torch.empty(2), torch.arange(3), torch.zeros(1), torch.full((2,), 1.0)]
assert {tensor.device.type for tensor in made} == {"meta"}, made
assert torch.zeros(2).device.type == "cpu"
"""


def test_a_device_that_is_asked_for_is_heeded() -> None:
    """transformers makes models on the meta device; rotary embeddings would be what memory held."""
    done = subprocess.run([sys.executable, "-c", AFTER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
