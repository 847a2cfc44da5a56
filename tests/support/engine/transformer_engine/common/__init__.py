"""What is common to all frameworks."""

from . import recipe

__all__ = ["recipe"]
