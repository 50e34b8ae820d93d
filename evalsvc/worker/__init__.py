"""One shard in one process; `shard.py` is the first file to read."""
