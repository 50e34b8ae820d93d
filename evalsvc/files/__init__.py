"""Bytes in the data folder and in messages, and files that are opened safely."""
