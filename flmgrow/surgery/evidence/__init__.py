"""One file per kind of evidence on what two checkpoints are to each other."""
