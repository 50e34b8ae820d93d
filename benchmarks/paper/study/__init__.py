"""What the findings share: planned trainings, the service that evaluates their checkpoints, reading, and reports."""
