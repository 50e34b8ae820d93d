"""The harness for CI: quality of a checkpoint, and speed against the code of a stored commit, for the gate."""
