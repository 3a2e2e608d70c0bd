"""Sources that read files: where they are, what is in them, and what can be wrong with it."""
