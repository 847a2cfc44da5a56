"""Searching settings on a small model: a grid of stages, trained, compared, and transferred."""
