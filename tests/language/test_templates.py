import pytest
from jinja2 import Environment, UndefinedError
from jinja2.sandbox import SecurityError
from lm_eval import utils

from evalsvc.language.templates import sandbox

sandbox()

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ words.append('x') }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_get_out(template: str) -> None:
    """Templates come from YAML files that a suite names; in lm-eval's environment they reach Python's built-ins."""
    with pytest.raises(SecurityError):
        utils.apply_template(template, {"words": ["a"]})


def test_templates_say_what_they_say_in_lm_eval() -> None:
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


def test_what_a_row_does_not_have_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'gone' is undefined"):
        utils.apply_template("{{gone}}", {})


def test_a_template_is_compiled_once() -> None:
    assert utils.env.from_string("{{once}}") is utils.env.from_string("{{once}}")
