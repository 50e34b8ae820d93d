"""The templates of benchmarks: in a sandbox, and compiled once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils

KEPT = 1024
"""Compiled templates that a process keeps."""


class Templates(ImmutableSandboxedEnvironment):
    """lm-eval's environment, but that a template reaches nothing beyond the document that it is given."""

    def __init__(self) -> None:
        theirs = utils.env
        super().__init__(undefined=theirs.undefined, keep_trailing_newline=theirs.keep_trailing_newline)
        self.filters.update(theirs.filters)
        # lm-eval compiles its template for every document anew, which is most of the time that requests take.
        self._compiled = lru_cache(maxsize=KEPT)(super().from_string)

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> Template:
        template: Template = self._compiled(source, *arguments, **options)
        return template


def sandbox() -> None:
    """Have lm-eval render every template in a sandbox.

    Its own environment lets a template of any YAML file reach Python's built-ins by way of `''.__class__`, and
    `apply_template` takes the environment from the module, so this is the one place where it can be replaced.
    """
    if not isinstance(utils.env, Templates):
        utils.env = Templates()
