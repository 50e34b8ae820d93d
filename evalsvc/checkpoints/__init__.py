"""Checkpoints: their locations, checks that a file is still the posted one, and safe reading of untrusted files."""
