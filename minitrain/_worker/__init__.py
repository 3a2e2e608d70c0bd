"""A worker: one process per rank that runs the user's train function."""
