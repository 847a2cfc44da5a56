"""The command line: options in, one call, report out."""
