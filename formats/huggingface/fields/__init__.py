"""The fields of ``config.json``: one row each, read by both directions."""
