"""A file per panel."""
