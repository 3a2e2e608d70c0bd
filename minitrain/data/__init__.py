"""Streaming datasets on Arrow."""
