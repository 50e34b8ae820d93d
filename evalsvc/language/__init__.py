"""lm-eval's benchmarks on our models: everything that knows lm-eval is in here.

A *benchmark* is what lm-eval calls a task (`arc_easy`); the word *task* is taken by the parts of a suite.
"""

from importlib.util import find_spec

from evalsvc.installation import missing_package

if find_spec("lm_eval") is None:
    raise missing_package("lm-eval", "a benchmark")
