"""Memory and functions in several processes of a host."""
