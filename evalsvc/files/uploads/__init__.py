"""Files that clients send in parts, until each becomes a checkpoint."""
