"""Where a stage begins, and what it saves."""
