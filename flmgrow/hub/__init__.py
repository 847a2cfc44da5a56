"""The Hugging Face Hub: models read from it and written to it, and nobody's token told."""
