"""Commands that begin as copies: they behave as programs of their own do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flmgrow.stages.warm import WarmProcess

STARTS = """
import os, sys, time
from pathlib import Path
from flmgrow.stages.warm import WarmProcess
if __name__ == "__main__":
    WarmProcess(["long", "never"], Path(sys.argv[1]), {**os.environ}, [])
    time.sleep(600)
"""
LONG = """
import os, signal, sys, time
print(os.getpid(), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
time.sleep(600)
"""


def wait_for(text: Path) -> str:
    for _ in range(1200):
        if text.exists() and text.read_text().endswith("\n"):
            return text.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{text} stays empty")


@pytest.mark.slow
def test_its_output_its_exit_code_and_its_signals(tmp_path: Path) -> None:
    words = (["flmgrow", "--version"], 0, "flmgrow "), (["flmgrow", "nothing"], 2, "error: ")
    for command, code, told in words:
        process = WarmProcess(command, tmp_path / "log", {**os.environ}, [])
        assert process.wait() == process.poll() == code
        assert (tmp_path / "log").read_text().startswith(told)
    (tmp_path / "long.py").write_text(LONG)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    sys.path.insert(0, str(tmp_path))
    try:
        process = WarmProcess(["long", str(tmp_path / "open")], tmp_path / "pid", environment, [0])
        wait_for(tmp_path / "pid")
    finally:
        sys.path.remove(str(tmp_path))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None  # it is held until the program lets signals in
    (tmp_path / "open").touch()
    assert process.wait() == -signal.SIGTERM


@pytest.mark.slow
def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(LONG)
    (tmp_path / "starts.py").write_text(STARTS)
    starts = subprocess.Popen(
        [sys.executable, str(tmp_path / "starts.py"), str(tmp_path / "pid")], cwd=tmp_path
    )
    pid = int(wait_for(tmp_path / "pid"))
    assert Path(f"/proc/{pid}").exists()
    starts.kill()
    starts.wait()
    for _ in range(1200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("it lives on")
