"""FreeLM's teacher signal as an evaluation."""
