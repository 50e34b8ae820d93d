"""What is missing for an evaluation."""
