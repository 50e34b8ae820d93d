"""Watching a folder in which a training job leaves its checkpoints, and posting each of them once."""
