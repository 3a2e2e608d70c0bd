"""The command line: ``python -m minitrain.launch``."""
