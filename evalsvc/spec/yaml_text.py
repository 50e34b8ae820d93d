"""YAML of a `submitter`, read in bounded time and memory and never quoted in an error.

Aliases let a few lines stand for more values than a machine can hold. PyYAML's errors quote lines of the file, which
the person who names the file may not be allowed to read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from evalsvc.errors import EvalsvcError, os_reason

MAX_NODES = 50_000
"""Maximum number of values, keys and containers, with aliases counted each time they are used. A layout may have a
value for each image id; reading this many takes a second."""

MAX_BYTES = 1_000_000
"""Maximum number of bytes of a file that `read_yaml_mapping` reads."""

MAX_DEPTH = 64

MAX_DIGITS = 200


class YamlError(ValueError):
    """The text is not YAML, or exceeds the bounds. The message has the place and none of the text."""


def read_yaml(content: str | bytes, max_nodes: int | None = None) -> Any:
    """Parse a YAML document of plain types, with at most `max_nodes` nodes [MAX_NODES]."""
    try:
        loader = _BoundedLoader(content, max_nodes or MAX_NODES)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _count(root, {}, loader.max_nodes)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise YamlError(yaml_reason(error)) from None
    except ValueError as error:  # of a constructor: an impossible date
        raise YamlError(f"a value is not what it looks like: {_QUOTED.sub('…', str(error))}") from None
    except (KeyError, AttributeError, TypeError, OverflowError):  # of a constructor: a tag that does not fit
        raise YamlError("a value is not what its tag says") from None


def read_yaml_mapping(path: Path, what: str, example: str, error_type: type[EvalsvcError]) -> dict[str, Any]:
    """Read a YAML file whose document maps names to values. Messages call the file `what` and show a line `example`."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise error_type(f"the {what} {path} cannot be read: {os_reason(error)}; check the path") from None
    if len(content) > MAX_BYTES:
        raise error_type(f"the {what} {path} has more than {MAX_BYTES:,} bytes; check the path")
    try:
        document = read_yaml(content)
    except YamlError as error:
        raise error_type(f"the {what} {path} is not valid YAML: {error}; correct the file") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise error_type(f"the {what} {path} does not map names to values; write lines such as `{example}`")
    return document


def yaml_reason(error: Exception) -> str:
    """Return what PyYAML found and where, without quoting the text."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return _QUOTED.sub("…", str(error.problem or error.context)) + place


_QUOTED = re.compile(r"""(['"])(?!<|!function\1)[^\n]{2,}\1""")
"""Names of tags, aliases and anchors. PyYAML's own terms are one character or between < and >, and `!function` is a tag
of lm-eval."""


class _BoundedLoader(yaml.SafeLoader):
    def __init__(self, content: str | bytes, max_nodes: int) -> None:
        super().__init__(content)
        self.max_nodes = max_nodes
        self._nodes = 0
        self._depth = 0

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        # PyYAML scans far ahead of `compose_node`, in time that grows with the square of the depth.
        if self.flow_level >= MAX_DEPTH:
            raise YamlError(_TOO_DEEP)
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise YamlError(_TOO_DEEP)
        if self._nodes > self.max_nodes:
            raise _too_many(self.max_nodes)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _count(node: yaml.Node, counted: dict[int, int], most: int) -> int:
    """Count the nodes of a document with every alias written out. `counted` caches counts, and holds 0 while a node is
    being counted."""
    known = counted.get(id(node))
    if known == 0:
        raise YamlError(f"the value in line {node.start_mark.line + 1} contains itself")
    if known is None:
        # Parsing base 60 in PyYAML and base 10 in Python takes time that grows with the square of the length.
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise YamlError(f"the number in line {node.start_mark.line + 1} has {len(node.value):,} digits")
        counted[id(node)] = 0
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known = counted[id(node)] = 1 + sum(_count(part, counted, most) for part in parts)
        if known > most:
            raise _too_many(most)
    return known


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


def _too_many(most: int) -> YamlError:
    return YamlError(f"it has more than {most:,} values, with aliases counted each time")
