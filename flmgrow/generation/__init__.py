"""Text out of a model: what comes next, and how text and tokens become each other."""
