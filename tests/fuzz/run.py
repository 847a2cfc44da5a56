"""Fuzz the parsers: ``python tests/fuzz/run.py SECONDS [PARSER ...]``.

Each parser has so many seconds in a process of its own. With atheris (the extra ``fuzz``) inputs
are chosen by the lines that they reach; without it they are mutations of valid files. An input that
a parser fails on is kept in ``tests/fuzz/found/PARSER/``, which ``tests/test_fuzz.py`` replays: it
is a test from then on. Inputs that reached something new are kept in ``build/fuzz/``.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "tests" / "fuzz" / "found"
KEPT = ROOT / "build" / "fuzz"
LARGEST = 1 << 16
sys.path.insert(0, str(ROOT / "tests" / "support"))


class FoundError(Exception):
    """A parser did what it must not."""


@contextmanager
def tested(name: str) -> Iterator[tuple[list[bytes], Callable[[bytes], None]]]:
    """Give a parser's valid files, and what reads one content and raises FoundError."""
    from fuzz_targets import PARSERS, Place
    from fuzz_watch import Watch

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        place, watch = Place(PARSERS[name], Path(scratch, name)), Watch()

        def test(data: bytes) -> None:
            place.put(data)
            if found := watch.objections(place.read, place.folder, place.parser.wrap(data)):
                raise FoundError("; ".join(found))

        for seed in place.seeds:  # what is imported when it is first needed is no finding
            place.put(seed)
            place.read()
        yield list(place.seeds), test


def with_coverage(name: str, seconds: int) -> int:
    """Fuzz one parser by what its inputs reach. Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["flmgrow"]):
        import fuzz_targets  # noqa: F401 - imports the parsers
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    with tested(name) as (seeds, test):
        for seed in seeds:
            (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}", f"-artifact_prefix={FOUND / name}/", "-timeout=60",
            "-rss_limit_mb=3000", f"-max_len={LARGEST}", "-print_final_stats=1", "-verbosity=0",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(folder)], test)
        atheris.Fuzz()
    return 0


def with_mutations(name: str, seconds: int) -> int:
    """Fuzz one parser by mutations; return 1 if it failed on one, which is kept then."""
    from fuzz_mutations import mutated

    count, end, choose = 0, time.monotonic() + seconds, Random(time.time_ns())
    with tested(name) as (seeds, test):
        while time.monotonic() < end:
            data = mutated(choose.choice(seeds), choose)
            count += 1
            try:
                test(data)
            except FoundError as found:
                path = FOUND / name / f"crash-{hashlib.sha1(data).hexdigest()}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                sys.stdout.write(f"{path.relative_to(ROOT)}: {found}\n")
                return 1
    sys.stdout.write(f"{name}: {count} inputs, nothing found\n")
    return 0


def in_turn(names: list[str], seconds: int) -> int:
    """Fuzz one parser after the other, each in a process; return 1 if one was found wanting."""
    from fuzz_targets import PARSERS

    if strange := set(names) - PARSERS.keys():
        sys.stderr.write(f"no such parser: {', '.join(strange)}; one of {', '.join(PARSERS)}\n")
        return 2
    failed = []
    for name in names or PARSERS:
        sys.stdout.write(f"-- {name}\n")
        sys.stdout.flush()
        own = [sys.executable, __file__, str(seconds), name, "--alone"]
        if subprocess.run(own, check=False).returncode:
            failed.append(name)
    sys.stdout.write(f"{len(failed)} of {len(names or PARSERS)} parsers failed {failed}\n")
    return min(len(failed), 1)


def main() -> int:
    """Fuzz as the command line says. Parsers are not imported before atheris listens."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("seconds", type=int, help="for each parser")
    words.add_argument("names", nargs="*", metavar="PARSER")
    words.add_argument("--alone", action="store_true", help="one parser, in this process")
    asked = words.parse_args()
    if not asked.alone:
        return in_turn(asked.names, asked.seconds)
    sees_lines = importlib.util.find_spec("atheris") is not None
    (name,) = asked.names
    return (with_coverage if sees_lines else with_mutations)(name, asked.seconds)


if __name__ == "__main__":
    sys.exit(main())
