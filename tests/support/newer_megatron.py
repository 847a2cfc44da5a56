"""Asking a process with megatron-core 0.19 in it, which an environment variable says where to find.

Its wheel, unpacked, runs on this Python as far as tests need it; ``make test-long`` unpacks it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from repository import ROOT
from stage_runs import NEWER

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def answer_of(script: str, asked: object, ranks: int = 1) -> Any:
    """Return what a script beside this one answers: JSON, as what it is asked.

    Several ``ranks`` find the question in a file, which they are given the path of.
    """
    paths = [NEWER, str(ROOT / "tests" / "support"), str(ROOT / "examples")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words, alone = [str(Path(__file__).with_name(script))], _ALONE
    with tempfile.NamedTemporaryFile("w") as file:
        if ranks > 1:
            json.dump(asked, file)
            file.flush()
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            words, alone = [*launch, *words, file.name], {}
        done = subprocess.run(
            [sys.executable, *words], input=json.dumps(asked), env={**os.environ, **alone, **own},
            capture_output=True, text=True, timeout=1200, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
