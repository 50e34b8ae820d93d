"""Expansion of names to benchmarks, groups and tags as in lm-eval, without loading any data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from lm_eval.config.group import GroupConfig

from evalsvc.errors import InvalidData
from evalsvc.language.catalog import Entry, Registry
from evalsvc.language.definitions import MAX_DEPTH, Config, Rules, read_definition

_OF_GROUPS = {item.name for item in fields(GroupConfig)}
"""Keys of a group's file that describe the group; all other keys are for its members."""


@dataclass(frozen=True)
class Leaf:
    """Benchmark with the changes of the groups around it."""

    name: str
    path: Path | None
    """YAML file of the benchmark; None if a group's file defines it."""
    overrides: Config = field(default_factory=dict)
    """Keys of the groups around the benchmark that replace those of the file."""
    closed: bool = False
    """Whether a submitter's group changes the file, which then must keep to `schema`, also for lm-eval's files."""
    unsafe: bool = False
    """Whether a group around the benchmark says `unsafe_code`."""

    def leaves(self) -> Iterator[Leaf]:
        yield self


@dataclass(frozen=True)
class Branch:
    """Group with its members."""

    config: Config
    """Configuration for lm-eval's GroupConfig."""
    members: tuple[Leaf | Branch, ...]

    def leaves(self) -> Iterator[Leaf]:
        for member in self.members:
            yield from member.leaves()


def expand(name: str, registry: Registry, rules: Rules) -> tuple[Leaf | Branch, ...]:
    """Return what a name stands for: a benchmark, a group, or the benchmarks of a tag."""
    expanded = _Expansion(registry, rules).of(registry.find(name), _Within(), 0)
    if not any(True for item in expanded for _ in item.leaves()):
        raise InvalidData(f"{name!r} stands for no benchmark; see `evalsvc benchmarks list {name}`")
    return expanded


@dataclass(frozen=True)
class _Within:
    """Changes that the groups around a member make."""

    overrides: Config = field(default_factory=dict)
    trusted: bool = True
    """Whether all of these groups are lm-eval's or the operator's."""
    unsafe: bool = False

    @property
    def closed(self) -> bool:
        """Whether a submitter changes more than the number of shots."""
        return not self.trusted and bool(self.overrides.keys() - {"num_fewshot"})

    def changed(self, overrides: Config, *, outer_wins: bool = False) -> _Within:
        merged = {**overrides, **self.overrides} if outer_wins else {**self.overrides, **overrides}
        return replace(self, overrides=merged, unsafe=self.unsafe or bool(overrides.get("unsafe_code")))

    def leaf(self, name: str, path: Path | None) -> Leaf:
        return Leaf(name, path, self.overrides, self.closed, self.unsafe)


@dataclass(frozen=True)
class _Expansion:
    registry: Registry
    rules: Rules
    opened: set[str] = field(default_factory=set)
    """Groups that were expanded: two groups that list each other twice would stand for any number of benchmarks."""

    def of(self, entry: Entry, within: _Within, depth: int) -> tuple[Leaf | Branch, ...]:
        if entry.kind == "tag":
            members = (self.registry.get(name) for name in entry.members)
            return tuple(within.leaf(item.name, item.path) for item in members if item)
        if entry.kind == "benchmark" or entry.path is None:
            return (within.leaf(entry.name, entry.path),)
        definition = read_definition(entry.path, self.rules, functions=True, closed=within.closed)
        inner = replace(
            within, trusted=within.trusted and definition.trusted, unsafe=within.unsafe or definition.unsafe
        )
        return (self.branch(entry.name, definition.config, inner, depth),)

    def branch(self, name: str, config: Config, within: _Within, depth: int) -> Branch:
        if name in self.opened or depth > MAX_DEPTH:
            raise InvalidData(f"the group {name!r} is a member of itself, or a member twice; list it once")
        self.opened.add(name)
        group_config = {key: value for key, value in config.items() if key in _OF_GROUPS} | {"group": name}
        inner = within.changed({key: value for key, value in config.items() if key not in _OF_GROUPS}, outer_wins=True)
        listed = config.get("task")
        members: list[Leaf | Branch] = []
        for item in listed if isinstance(listed, list) else [listed]:
            members += self.member(name, item, inner, depth + 1)
        return Branch(group_config, tuple(members))

    def member(self, group: str, item: object, within: _Within, depth: int) -> tuple[Leaf | Branch, ...]:
        content = item if isinstance(item, dict) else {"task": item}
        key = "group" if "group" in content else "task"
        name = content.get(key)
        if not isinstance(name, str):
            raise InvalidData(f"the group {group!r} lists {type(item).__name__}; a member is a name, or has a `task`")
        # `task` must not be passed on: lm-eval then gives every member of a nested group or tag its name.
        merged = within.changed({other: value for other, value in content.items() if other != key})
        entry = self.registry.get(name)
        if entry is not None:
            return self.of(entry, merged, depth)
        if key == "group":
            return (self.branch(f"{group}::{name}", content, within, depth),)
        if "dataset_path" not in merged.overrides and "custom_dataset" not in merged.overrides:
            raise InvalidData(f"the group {group!r} has the member {name!r}, which no YAML file defines; correct it")
        return (merged.leaf(f"{group}::{name}", None),)
