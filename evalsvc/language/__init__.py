"""lm-eval's benchmarks on evalsvc's models: the only room that knows lm-eval.

A *benchmark* is what lm-eval calls a task (`arc_easy`); in evalsvc, a *task* is a part of a suite.
"""

from importlib.util import find_spec

from evalsvc.installation import missing_package

if find_spec("lm_eval") is None:
    raise missing_package("lm-eval", "a benchmark")
