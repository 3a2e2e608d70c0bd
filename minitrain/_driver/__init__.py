"""The driver: what ``fit()`` does in the user's process."""
