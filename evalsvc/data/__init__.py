"""Data that tasks read: token files, captions, images, and the tokenizer."""
