"""One piece of evidence, whatever its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One piece of evidence: passed, failed, or only reported (``passed`` None)."""

    name: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, object] = field(default_factory=dict)
