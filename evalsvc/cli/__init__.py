"""The command line. `program` lists the commands; the module of a command is imported when the command runs."""

from evalsvc.cli.program import app, main

__all__ = ["app", "main"]
