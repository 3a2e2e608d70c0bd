"""From blocks to batches, in the terms of the framework that takes them."""
