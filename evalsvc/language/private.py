"""Private parts of lm-eval, datasets and huggingface_hub that evalsvc uses.

Any release may change them. `tests/language/test_private.py` has a test for each part, which says what to do when it
fails; no other module of `language` uses private parts.
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
"""Names that `datasets` reads as a loader of local files instead of a dataset of the hub."""

KEPT = 1024


class Templates(ImmutableSandboxedEnvironment):
    """lm-eval's template environment, restricted to the document that a template is given."""

    def __init__(self) -> None:
        original = utils.env
        super().__init__(undefined=original.undefined, keep_trailing_newline=original.keep_trailing_newline)
        self.filters.update(original.filters)
        # lm-eval compiles its template again for every document, which takes most of the time of requests.
        self._compiled = lru_cache(maxsize=KEPT)(super().from_string)

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> Template:
        template: Template = self._compiled(source, *arguments, **options)
        return template


def sandbox() -> None:
    """Make lm-eval render every template in a sandbox: in its own environment, a template of any YAML file reaches
    Python's built-ins. `apply_template` reads the environment from the module, the only place to replace it."""
    if not isinstance(utils.env, Templates):
        utils.env = Templates()


@contextmanager
def hub_offline(wanted: bool) -> Iterator[None]:
    """Keep the hub's clients off the network, or let them use it, regardless of the environment."""
    # Variables such as HF_HUB_OFFLINE are read when these modules are imported; later their constants count.
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
    """Return the function of each metric, None where absent; empty for a benchmark that is a program."""
    return getattr(task, "_metric_fn_list", {})


def metric_options(task: Task) -> Mapping[str, object]:
    """Return the options of each metric's function; empty for a benchmark that is a program."""
    return getattr(task, "_metric_fn_kwargs", {})


def filter_names(task: Task) -> list[str]:
    return [each.name for each in task._filters]


def filter_responses(task: Task, answered: list[Instance]) -> None:
    """Put the filtered responses into `filtered_resps`; `answered` become the task's instances."""
    task._instances = answered
    task.apply_filters()


def example_pool(task: ConfigurableTask) -> tuple[int, bool]:
    """Return the number of a task's solved examples, and whether the document in question is one of them."""
    return len(task.sampler.df), task.fewshot_cfg.split == task.config.test_split
