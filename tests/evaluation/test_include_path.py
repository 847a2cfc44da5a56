"""The tasks are there for lm-eval's own command line, as the page on them shows it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "concepts" / "iq-evaluation.md"


def test_the_harness_alone_runs_them(tmp_path: Path) -> None:
    """The page's own two commands, with the harness's model that answers nonsense."""
    found = re.search(r"```sh\ntasks=\$\((python .*)\)\n(lm-eval run .*)\n```", PAGE.read_text())
    assert found is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def output(words: list[str]) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = output(shlex.split(found[1])[1:]).strip()
    shown = shlex.split(found[2].replace("$tasks", folder))[1:]
    shown[shown.index("hf")] = "dummy"
    del shown[shown.index("--model_args") : shown.index("--tasks")]
    output(["-m", "lm_eval", *shown, "--limit", "2", "--output_path", "scores"])
    (path,) = (tmp_path / "scores").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert set(results["groups"]) == {"iq_rules", "iq_patterns", "iq_interference"}
    assert len(results["configs"]) == 9
    for config in results["configs"].values():
        assert config["metadata"]["seed"] == 7
        assert config["metadata"]["digest"].startswith("sha256:")
