"""What a run leaves on disk: names, rows, checkpoints that exist completely or not at all."""
