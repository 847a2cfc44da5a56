"""What a training imports, imported once for all that begin as copies (``warm.py``)."""

import warnings

warnings.filterwarnings("ignore")  # megatron-core's, of what a CPU lacks

import flmgrow.trainer.loop  # noqa: E402, F401
