"""Jobs that begin with what others make."""

from pathlib import Path

from flmgrow.stages.pool import Job, JobEnd, Pool

WORKS, FAILS = ("--version",), ("no-such-command",)


def run(jobs: list[Job], parallel: int = 2) -> list[JobEnd]:
    return Pool(parallel).run(jobs, lambda *_: None)


def job(folder: Path, name: str, after: str = "", words: tuple[str, ...] = WORKS) -> Job:
    return Job(name, folder / name, 0, command=words, after=frozenset(after.split()))


def test_a_job_waits_for_what_it_begins_with(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "c", "a b"), job(tmp_path, "b", "a"), job(tmp_path, "a")]
    assert [each.job.name for each in run(jobs)] == ["a", "b", "c"]


def test_what_begins_with_a_failure_is_given_up_and_nothing_else(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", words=FAILS), job(tmp_path, "b", "a"), job(tmp_path, "c", "b"),
            job(tmp_path, "d")]  # fmt: skip
    ended = {each.job.name: each.code for each in run(jobs, 1)}
    assert ended == {"a": 2, "d": 0}


def test_an_exit_code_that_is_fine_lets_the_next_begin(tmp_path: Path) -> None:
    first = Job("a", tmp_path / "a", 0, command=FAILS, fine=frozenset({0, 2}))
    ended = [(each.job.name, each.code) for each in run([first, job(tmp_path, "b", "a")])]
    assert ended == [("a", 2), ("b", 0)]
