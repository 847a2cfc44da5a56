"""Doing it: plan, execute, record and verify."""
