"""From text files to the samples of a step."""
