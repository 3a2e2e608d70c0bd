"""The agent: one per host and driver. Forks workers, watches them, and ends with its driver."""
