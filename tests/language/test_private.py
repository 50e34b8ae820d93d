"""What is taken from private places of other packages: each piece still is there, and does what it is taken for.

Where a release has moved a piece, look for it in the release's sources, and change `evalsvc/language/private.py` alone;
where it has gone, cap the package's version in `pyproject.toml` until then.
"""

import ast
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from benchmark_files import questions, write_benchmark
from huggingface_hub.errors import OfflineModeIsEnabled
from jinja2 import Environment
from jinja2.sandbox import SecurityError
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from loaded_benchmarks import load_one

from evalsvc.language import private

LANGUAGE = Path(private.__file__).parent


@pytest.fixture
def task(tmp_path: Path) -> ConfigurableTask:
    """A benchmark of three questions with one solved example each, from among themselves."""
    write_benchmark(tmp_path, "a", questions(3))
    task = load_one(tmp_path, "a", num_fewshot=1).task
    assert isinstance(task, ConfigurableTask)
    return task


def test_a_benchmark_file_is_read_with_its_functions_and_without(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def double(doc):\n    return 2 * doc\n")
    path = tmp_path / "a.yaml"
    path.write_text("include: gone.yaml\ntask: a\nprocess_docs: !function code.double\n")
    named = private.load_yaml(path, resolve_func=False, recursive=False)
    assert named == {"include": "gone.yaml", "task": "a", "process_docs": f"{tmp_path}/code.double"}
    assert private.load_yaml(path, resolve_func=True, recursive=False)["process_docs"](2) == 4


def test_the_network_is_refused_and_allowed_by_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages read a variable when they are imported, and their constant each time they are called."""
    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    for before in (False, True):
        for place in places:
            monkeypatch.setattr(*place, before)
        with private.hub_offline(True):
            assert all(getattr(*place) for place in places)
            with pytest.raises(OfflineModeIsEnabled):
                huggingface_hub.HfApi().model_info("u/m")
            with private.hub_offline(False):
                assert not any(getattr(*place) for place in places)
        assert {getattr(*place) for place in places} == {before}


def test_functions_and_options_of_metrics_are_known(task: ConfigurableTask) -> None:
    """They are looked for with a default, since programs have none: moved, they would be gone without a word."""
    assert set(private.metric_functions(task)) == set(private.metric_options(task)) == set(task.aggregation())
    assert all(map(callable, private.metric_functions(task).values()))
    assert private.example_pool(task) == (3, True)
    assert {"json", "csv", "parquet", "text", "imagefolder"} <= private.LOADERS


def test_filters_fill_the_responses_of_the_instances(task: ConfigurableTask) -> None:
    assert private.filter_names(task) == ["none"]
    answered = [Instance("loglikelihood", {}, ("a", "b"), 0, ("a", 0, 1), resps=[(-1.0, True)])]
    private.filter_responses(task, answered)
    assert answered[0].filtered_resps == {"none": (-1.0, True)}


def test_nothing_else_takes_private_pieces() -> None:
    """Private names that a module imports, or reads of anything but its own objects, have a test when they are here."""
    taken: set[str] = set()
    for file in LANGUAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())) if file.name != "private.py" else ():
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                names = [node.attr]
            taken |= {f"{file.name}: {name}" for name in names if name.startswith("_") and not name.startswith("__")}
    assert taken == set()


ESCAPES = (
    *("{{ ''.__class__.__mro__ }}", "{{ (''|attr('__class__')).__mro__ }}", "{{ words.append('x') }}"),
    *("{{ cycler.__init__.__globals__.os }}", "{{ '{0.__class__}'.format(1) }}"),
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_get_out(template: str) -> None:
    """Templates come from YAML files that a suite names; in lm-eval's environment they reach Python's built-ins."""
    private.sandbox()
    with pytest.raises(SecurityError):
        utils.apply_template(template, {"words": ["a"]})


def test_templates_say_what_they_say_in_lm_eval() -> None:
    private.sandbox()
    theirs = Environment(keep_trailing_newline=True)
    theirs.filters["regex_replace"] = utils.regex_replace
    row = {"words": ["b", "a"], "n": 3, "text": "one two\n"}
    for template in (
        "{{text}}\n",
        "{{words|sort|join(', ')}}{{n + 1}}",
        "{% for word in words %}{{loop.index}}. {{word}}\n{% endfor %}",
        "{{text|regex_replace('o', '0')}}",
        "{{words.index('a')}}{{'%d' % n}}{{text.strip().split()[1]}}",
    ):
        assert utils.apply_template(template, row) == theirs.from_string(template).render(**row)
    assert utils.env.from_string("{{once}}") is utils.env.from_string("{{once}}"), "compiled once"
