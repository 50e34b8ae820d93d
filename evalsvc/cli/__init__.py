"""The command line: `program` says which commands there are. A command's module is imported when it is run."""

from evalsvc.cli.program import app, main

__all__ = ["app", "main"]
