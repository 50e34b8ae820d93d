"""Commands in the shell blocks of the documentation, and whether programs have them with the options that they give."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import prepare_data
import typer

from evalsvc.cli import app

COMMANDS: Any = typer.main.get_command(app)
PREPARE_DATA: Any = typer.main.get_command(prepare_data.app)
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
ENDS = {"|", "||", "&&", ";", "&", "(", ")"}
REDIRECTIONS = {">", ">>", "<", "<<", ">|"}


def check_command(words: list[str], program: Any = COMMANDS) -> None:
    """Check that a program takes these arguments and options; raise click's error if it does not."""
    try:
        context = program.make_context(program.name, list(words))
        while hasattr(context.command, "resolve_command"):
            following = [*context._protected_args, *context.args]
            name, command, following = context.command.resolve_command(context, following)
            context = command.make_context(name, following, parent=context)
    except typer.Exit:  # --help and --version
        return


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every simple command of a shell block; what heredocs hold is no command."""
    for line in _lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        after_redirection = False
        for word in lexer:
            if word in ENDS:
                yield from [words] if words else []
                words = []
            elif word in REDIRECTIONS:
                after_redirection = True
                if words and words[-1] == "2":
                    words.pop()
            elif after_redirection:
                after_redirection = False
            else:
                words.append(word)
        yield from [words] if words else []


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a block, continued ones joined, without the bodies of heredocs."""
    lines = iter(text.replace("\\\n", " ").splitlines())
    joined = ""
    for line in lines:
        joined = f"{joined}\n{line}" if joined else line
        try:
            shlex.split(joined, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        yield joined
        if (document := HEREDOC.search(joined)) is not None:
            for inner in lines:
                if inner.strip() == document[2]:
                    break
        joined = ""
    assert not joined, f"a quotation is not closed: {joined}"
