"""Watcher of the folder of a training job, which posts every checkpoint once."""
