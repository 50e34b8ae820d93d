"""Bytes in the data folder and in messages, and safely opened files."""
