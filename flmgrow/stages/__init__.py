"""All stages: the schedule end to end."""
