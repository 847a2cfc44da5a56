"""The tasks that flmgrow ships for lm-evaluation-harness, which finds them as files in a folder."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""What lm-eval's own command line takes as ``include_path``."""
