"""Begin benchmarks, each up to the first thing that it measures: `python first_measurement.py [[FILE, OPTION…], …]`.

Each runs in a fork of this process, which has imported what takes long. A fork ends with exit code 0 after the first
timed call, training step, result of a pool or of a process of the benchmark's own, answer to a POST, or start of a
service. A benchmark that does nothing of these runs to its end. Prints a line of JSON for each.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing.pool
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

import httpx2
from torch.optim.optimizer import register_optimizer_step_post_hook

BENCHMARKS = Path(__file__).parents[2]
SLOW_IMPORTS = ("side_by_side", "compare", "transformers", "diffusers", "lm_eval.api.task", "cleanfid.fid", "scipy")


def end(what: str) -> Never:
    print(f"ended after {what}", flush=True)
    raise SystemExit(0)


def ending_after(owner: Any, name: str, what: str, counts: Callable[..., bool] = lambda *_: True) -> None:
    """End the process after a call of `owner.name` whose result and arguments count as a measurement."""
    original = getattr(owner, name)

    def ending(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if counts(result, *arguments):
            end(what)
        return result

    setattr(owner, name, ending)


def install(benchmark: Path) -> None:
    side_by_side, compare = (importlib.import_module(name) for name in ("side_by_side", "compare"))
    ending_after(side_by_side, "seconds", "a timed call")
    ending_after(multiprocessing.pool.IMapIterator, "__next__", "a result of the pool")
    ending_after(
        httpx2.Client, "send", "a POST", lambda answer, _, request: answer.is_success and request.method == "POST"
    )
    ending_after(urllib.request, "urlopen", "a POST", lambda _, request: getattr(request, "data", None) is not None)
    ending_after(
        subprocess, "run", "a process of its own", lambda _, command: str(benchmark) in [str(each) for each in command]
    )
    register_optimizer_step_post_hook(lambda *_: end("a training step"))
    compare.service = ending_service(compare.service)


def ending_service(service: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def started(settings: Any) -> Iterator[str]:
        with service(settings):
            end("the start of a service")
        yield ""

    return started


def run(command: Sequence[str]) -> Never:
    """Run the benchmark in this process, and end it."""
    code = 1
    try:
        benchmark = BENCHMARKS / command[0]
        sys.path.insert(0, str(benchmark.parent))
        install(benchmark)
        sys.argv = [str(benchmark), *command[1:]]
        runpy.run_path(str(benchmark), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code)
    except BaseException:  # the parent prints it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def begin(command: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark in a fork, and return how the fork ended, and the last that it printed."""
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            run(command)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return {
            "file": command[0],
            "code": os.waitstatus_to_exitcode(status),
            "output": output.read().decode(errors="replace")[-3000:],
        }


if __name__ == "__main__":
    sys.path.insert(1, str(BENCHMARKS))
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    for each in json.loads(sys.argv[1]):
        print(json.dumps(begin(each)), flush=True)
