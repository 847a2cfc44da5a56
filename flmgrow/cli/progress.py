"""A bar that shows how far a command has come, on a terminal and nowhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flmgrow.model.wording import clock_text


@contextmanager
def steps_bar(
    label: str,
) -> Iterator[tuple[Callable[[int, int, float], None], Callable[[str], None]]]:
    """Show steps taken and the time left on stderr, if that is a terminal.

    Gives what moves the bar (steps taken, of how many, seconds left), and what prints a line above
    it; lines are printed where there is no terminal, too.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None, lambda line: print(line, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[left]} left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, left="?")
        yield (
            lambda done, of, seconds: bar.update(
                task, completed=done, total=of, left=clock_text(seconds)
            ),
            lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with bytes per second and time left on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
