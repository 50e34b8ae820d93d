"""What is taken from places of lm-eval, datasets and huggingface_hub that are not public.

Any of their releases may move them. `tests/language/test_private.py` has a test for each, and says what to do where one
fails; no other module of `language` touches such a place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import datasets
import huggingface_hub.constants
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._yaml_loader import load_yaml as load_yaml

LOADERS = frozenset(_PACKAGED_DATASETS_MODULES)
"""Names that `datasets` takes for a loader of local files, and not for a dataset of the hub."""

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


@contextmanager
def hub_offline(wanted: bool) -> Iterator[None]:
    """Keep the hub's clients off the network, or let them use it, whatever the environment says."""
    # The variables HF_HUB_OFFLINE and the like count when these modules are imported; later it is their constants.
    evaluate = sys.modules.get("evaluate.config")
    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    places += [(evaluate, "HF_EVALUATE_OFFLINE")] if evaluate else []
    before = [(module, name, getattr(module, name)) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, wanted)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def metric_functions(task: Task) -> Mapping[str, object]:
    """Return the function of each metric, None where a metric has none; empty for a benchmark that is a program."""
    return getattr(task, "_metric_fn_list", {})


def metric_options(task: Task) -> Mapping[str, object]:
    """Return the options of each metric's function; empty for a benchmark that is a program."""
    return getattr(task, "_metric_fn_kwargs", {})


def filter_names(task: Task) -> list[str]:
    """Return the names of a task's filters."""
    return [each.name for each in task._filters]


def filter_responses(task: Task, answered: list[Instance]) -> None:
    """Put what each filter of a task makes of the responses into `filtered_resps`; `answered` become the task's own."""
    task._instances = answered
    task.apply_filters()


def example_pool(task: ConfigurableTask) -> tuple[int, bool]:
    """Return how many solved examples a task has, and whether the document that is asked about is one of them."""
    return len(task.sampler.df), task.fewshot_cfg.split == task.config.test_split
