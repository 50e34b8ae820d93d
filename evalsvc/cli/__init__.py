"""The command line. Only what `--help` needs is imported at the top; every command imports its own."""

from evalsvc.cli.program import app, main

__all__ = ["app", "main"]
