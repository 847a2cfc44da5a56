"""Schedules for a budget: what to train, when to grow, what to expect, and whether to grow."""
