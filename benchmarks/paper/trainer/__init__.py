"""A trainer to learn from: recipes, batches, the loop, and checkpoints as open_lm writes them."""
