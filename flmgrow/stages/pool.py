"""Running many trainings on one machine, several at a time.

Each is a process of its own, with its share of the machine's cores, or with devices of its own, and
its output in a file. They end when this process does; asked to stop, it asks them, and they save
first. How far each is can be read from its metrics, and so can how long the rest will take. A job
may begin with what others make: it waits for them, and is given up if one of them fails.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from types import FrameType

from flmgrow.stages.warm import WarmProcess
from flmgrow.storage.cores import bound_cores, usable_cores
from flmgrow.storage.folders import make_folders
from flmgrow.trainer.ranks.processes import begin_as_child, stopping_signals
from flmgrow.trainer.stage.watching import METRICS

_POLL = 0.1

Process = subprocess.Popen[bytes] | WarmProcess


@dataclass(frozen=True)
class Job:
    """A stage to be trained in ``folder``, by ``steps`` steps; with ``until``, it is asked to stop
    once it has taken so many.

    A job without steps runs another ``command``. It begins when those that it comes ``after`` have
    ended well, which it does itself with one of the exit codes ``fine``. A step is worth ``weight``
    of the time that all jobs take.
    """

    name: str
    folder: Path
    steps: int
    ranks: int = 1
    until: int | None = None
    command: tuple[str, ...] | None = None
    after: frozenset[str] = frozenset()
    fine: frozenset[int] = frozenset({0})
    weight: float = 1.0

    @property
    def goal(self) -> int:
        """The steps after which it ends."""
        return self.steps if self.until is None else self.until

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the job's command, without ``flmgrow``."""
        return self.command or ("train", str(self.folder / "stage.yaml"))

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.folder / f"{self.words[0]}.log"

    @property
    def taken(self) -> int:
        """The steps that it has reported."""
        if not self.steps:
            return 0
        try:
            return (self.folder / METRICS).read_bytes().count(b'"kind": "step"')
        except OSError:
            return 0


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: its exit code, and the last line that it told."""

    job: Job
    code: int
    told: str


Told = Callable[[JobEnd, int, float], object]
"""Hears of a job that has ended, how many are left, and about how many seconds they take."""


Watched = Callable[[int, int, float], object]
"""Hears of the steps that all jobs together have taken, of how many, and of the seconds left."""

_LOOK = 1.0
"""Seconds between two words to it."""


class Pool:
    """Jobs that run at the same time, at most ``parallel``; ``watched`` hears how they get on.

    With ``warm`` they begin as copies of a process that has imported what they need, where there
    are no GPUs.
    """

    def __init__(
        self, parallel: int, watched: Watched = lambda *_: None, *, warm: bool = False
    ) -> None:
        self.parallel = parallel
        self._warm = warm and sys.platform == "linux" and not _devices()
        self._watched = watched
        self._running: dict[int, tuple[Job, Process]] = {}
        self._stopped: set[str] = set()
        self._asked = 0

    def run(self, jobs: Iterable[Job], told: Told) -> list[JobEnd]:
        """Run the jobs in turn, and return how each ended that was begun.

        Of those that could begin, the first does. On a signal all are asked to stop; when they have
        saved, the signal is raised here.
        """
        waiting = list(jobs)
        ended: list[JobEnd] = []
        clock, looked = _Clock(waiting), time.monotonic()
        handlers = {
            number: signal.signal(number, self._stop)
            for number in stopping_signals()
            if signal.getsignal(number) is not signal.SIG_IGN  # a shell's job in the background
        }
        try:
            while self._running or (waiting and not self._asked):
                while len(self._running) < self.parallel and not self._asked:
                    if (job := self._next(waiting)) is None:
                        break
                    waiting.remove(job)
                    self._start(job)
                time.sleep(_POLL)
                for one in self._finished():
                    ended.append(one)
                    clock.end(one.job)
                    if one.code not in one.job.fine:
                        for lost in _begin_with(one.job, waiting):
                            waiting.remove(lost)
                            clock.end(lost)
                    told(one, len(waiting) + len(self._running), clock.seconds(self._jobs()))
                if time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    self._watched(*clock.steps(self._jobs()), clock.seconds(self._jobs()))
        finally:
            for _, process in self._running.values():
                process.kill()
                process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._asked:
            signal.raise_signal(self._asked)
        return ended

    def _next(self, waiting: Sequence[Job]) -> Job | None:
        """Return the first job whose beginning is made, None if there is none yet."""
        missing = {job.name for job in (*waiting, *self._jobs())}
        return next((job for job in waiting if not job.after & missing), None)

    def _jobs(self) -> list[Job]:
        return [job for job, _ in self._running.values()]

    def _start(self, job: Job) -> None:
        slot = next(number for number in range(self.parallel) if number not in self._running)
        make_folders(Path(job.folder.anchor), job.folder)
        cores = cores_of(slot, self.parallel)
        environment = {**os.environ, **share(slot, self.parallel, job.ranks)}
        process = (_warm if self._warm else _cold)(job, environment, cores)
        asked = self._asked
        self._running[slot] = (job, process)
        if asked:  # while it was being started, and before it could be told
            process.send_signal(asked)

    def _finished(self) -> Iterable[JobEnd]:
        for slot, (job, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                self._stop_there(job, process)
                continue
            del self._running[slot]
            self._stopped.discard(job.name)
            yield JobEnd(job, code, _last_line(job.log))

    def _stop_there(self, job: Job, process: Process) -> None:
        """Ask a job to stop where it is to, once: a second time would kill it."""
        if job.until is None or job.name in self._stopped or job.taken < job.until:
            return
        self._stopped.add(job.name)
        process.send_signal(signal.SIGTERM)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._asked = self._asked or number
        for _job, process in self._running.values():
            process.send_signal(number)


class _Clock:
    """How far jobs are, and how long the rest will take, as fast as it went since the beginning.

    Steps that were taken before say nothing of the speed.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._begin = time.monotonic()
        self._before = {job.name: min(job.taken, job.goal) for job in jobs}
        self._taken = dict(self._before)
        self._goals = {job.name: job.goal for job in jobs}
        self._weights = {job.name: job.weight for job in jobs}
        self._all = sum(self._goals.values())

    def end(self, job: Job) -> None:
        """A job has ended: it takes no more steps, however many it took."""
        self._taken[job.name] = job.goal

    def steps(self, running: Sequence[Job]) -> tuple[int, int]:
        """Return how many steps are taken, and how many there are."""
        return sum(self._now(running).values()), self._all

    def seconds(self, running: Sequence[Job]) -> float:
        """Return about how many seconds the rest takes; infinite as long as nothing is known."""
        now, passed = self._now(running), time.monotonic() - self._begin
        done = sum((now[name] - self._before[name]) * each for name, each in self._weights.items())
        left = sum((self._goals[name] - now[name]) * each for name, each in self._weights.items())
        return passed * left / done if done else inf if left else 0.0

    def _now(self, running: Sequence[Job]) -> Mapping[str, int]:
        return {**self._taken, **{job.name: min(job.taken, job.goal) for job in running}}


def _begin_with(failed: Job, waiting: Sequence[Job]) -> list[Job]:
    """Return the jobs that begin with what ``failed`` was to make, or with what they make."""
    lost = {failed.name: failed}
    while more := [job for job in waiting if job.name not in lost and job.after & lost.keys()]:
        lost |= {job.name: job for job in more}
    return list(lost.values())[1:]


def _cold(job: Job, environment: Mapping[str, str], cores: Sequence[int]) -> Process:
    """Start a job as a program of its own."""
    with job.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flmgrow", *job.words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True, preexec_fn=partial(_begin, os.getpid(), cores),
        )  # fmt: skip


def _warm(job: Job, environment: Mapping[str, str], cores: Sequence[int]) -> Process:
    """Start a job as a copy of a process that has imported what it needs."""
    alone = job.words[0] == "train" and job.ranks == 1
    words = ("flmgrow.trainer", *job.words[1:]) if alone else ("flmgrow", *job.words)
    return WarmProcess(words, job.log, environment, cores)


def _begin(parent: int, cores: Sequence[int]) -> None:
    begin_as_child(parent)
    if cores:
        os.sched_setaffinity(0, cores)


def cores_of(slot: int, slots: int) -> Sequence[int]:
    """Return the cores of one of ``slots`` equal shares; none where there are fewer than shares."""
    cores = bound_cores()
    each = len(cores) // slots
    return cores[slot * each : (slot + 1) * each]


def share(slot: int, slots: int, ranks: int) -> Mapping[str, str]:
    """Return what tells a job's processes which devices are theirs, and how many threads."""
    threads = max(1, min(len(cores_of(slot, slots)), usable_cores() // slots) // ranks)
    found = {"OMP_NUM_THREADS": str(threads)} if "OMP_NUM_THREADS" not in os.environ else {}
    devices = _devices()
    if len(devices) >= slots * ranks:
        own = devices[slot * ranks : (slot + 1) * ranks]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return found


def _devices() -> list[str]:
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [device for device in told.split(",") if device]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _last_line(log: Path) -> str:
    """Return the last error that a log tells, or its last line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
