"""One ``.pt`` file: its archive, and its pickle read without calling anything."""
