"""How far a check has come, where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from flmgrow.surgery.execution import Progress

Bar = Callable[[int, str], AbstractContextManager[Progress]]
"""Shows a bar for so many bytes under a label, and gives what is told of each that is done."""


@contextmanager
def no_bar(_total: int, _label: str) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda _: None
