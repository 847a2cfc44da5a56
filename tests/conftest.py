"""Settings for all tests."""

from hypothesis import settings

# Machines are shared, and a property must not fail because something else ran.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
