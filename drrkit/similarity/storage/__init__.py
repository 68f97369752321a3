"""Networks by name and in files."""
