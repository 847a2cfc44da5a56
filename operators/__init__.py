"""What growth does to axes; knows no files."""
