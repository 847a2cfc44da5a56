"""How checkpoints lie on disk; knows no growth."""
