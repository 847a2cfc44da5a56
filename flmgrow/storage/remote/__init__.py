"""Checkpoints in object stores: addresses, requests, and paths that stand for objects."""
