"""The operating system: processes and their ends, processors, interfaces, GPUs."""
