"""Asking a process with megatron-core 0.19 in it, which an environment variable says where to find.

Its wheel, unpacked, runs on this Python as far as tests need it; ``make test-long`` unpacks it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from repository import ROOT
from stage_runs import NEWER

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def answer_of(script: str, asked: object) -> Any:
    """Return what a script beside this one answers: JSON, as what it is asked."""
    paths = [NEWER, str(ROOT / "tests" / "support"), str(ROOT / "examples")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))], input=json.dumps(asked),
        env={**os.environ, **_ALONE, **own},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
