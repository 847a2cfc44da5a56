"""Architecture tables: rows only."""
