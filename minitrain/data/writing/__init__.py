"""Datasets written to files."""
