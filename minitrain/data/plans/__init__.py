"""What a dataset stands for: sources, steps, and the blocks they come to."""
