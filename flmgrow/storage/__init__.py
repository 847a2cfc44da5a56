"""Files: read whole or refused, written for certain or not at all."""
