"""Where a checkpoint is, whether it is still the one that was posted, and reading it without trusting it."""
