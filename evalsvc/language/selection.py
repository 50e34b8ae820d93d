"""From a name to benchmarks: what groups and tags stand for, as lm-eval resolves them, without loading any data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lm_eval.config.group import GroupConfig

from evalsvc.errors import InvalidData
from evalsvc.language.definitions import MAX_DEPTH, Rules, read_definition
from evalsvc.language.registry import Entry, Kind, Registry

_OF_GROUPS = {item.name for item in fields(GroupConfig)}
"""Keys of a group's file that are about the group; all others are for its members."""


@dataclass(frozen=True)
class Leaf:
    """One benchmark."""

    name: str
    path: Path | None
    """Its YAML file; None: a group's file has all of it."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What the groups around it say in place of the file."""
    trusted: bool = True
    """Whether those groups are lm-eval's own."""

    def leaves(self) -> Iterator[Leaf]:
        yield self


@dataclass(frozen=True)
class Branch:
    """A group."""

    config: Mapping[str, Any]
    """As lm-eval's GroupConfig takes it."""
    members: tuple[Leaf | Branch, ...]

    def leaves(self) -> Iterator[Leaf]:
        for member in self.members:
            yield from member.leaves()


def expand(name: str, registry: Registry, rules: Rules) -> tuple[Leaf | Branch, ...]:
    """What a name stands for: itself, a group, or the benchmarks of a tag.

    Raises:
        UnknownName: there is nothing of this name; or a group lists it.
        InvalidData: a group's file cannot be used, or a group has no members.
    """
    found = _Expansion(registry, rules).of(registry.find(name), {}, True, 0)
    if not any(True for item in found for _ in item.leaves()):
        raise InvalidData(f"{name!r} stands for no benchmark at all; see `evalsvc benchmarks list {name}`")
    return found


@dataclass(frozen=True)
class _Expansion:
    registry: Registry
    rules: Rules

    def of(self, entry: Entry, overrides: Mapping[str, Any], trusted: bool, depth: int) -> tuple[Leaf | Branch, ...]:
        if entry.kind is Kind.tag:
            found = (self.registry.get(name) for name in entry.members)
            return tuple(Leaf(item.name, item.path, overrides, trusted) for item in found if item)
        if entry.kind is Kind.benchmark or entry.path is None:
            return (Leaf(entry.name, entry.path, overrides, trusted),)
        definition = read_definition(entry.path, self.rules, functions=True)
        return (self.branch(entry.name, definition.config, overrides, trusted and definition.trusted, depth),)

    def branch(
        self, name: str, config: Mapping[str, Any], overrides: Mapping[str, Any], trusted: bool, depth: int
    ) -> Branch:
        if depth > MAX_DEPTH:
            raise InvalidData(f"the group {name!r} is a member of itself; take it out of its own members")
        own = {key: value for key, value in config.items() if key in _OF_GROUPS} | {"group": name}
        passed = {**{key: value for key, value in config.items() if key not in _OF_GROUPS}, **overrides}
        listed = config.get("task")
        members: list[Leaf | Branch] = []
        for item in listed if isinstance(listed, list) else [listed]:
            members += self.member(name, item, passed, trusted, depth + 1)
        return Branch(own, tuple(members))

    def member(
        self, group: str, item: Any, overrides: Mapping[str, Any], trusted: bool, depth: int
    ) -> tuple[Leaf | Branch, ...]:
        content = item if isinstance(item, dict) else {"task": item}
        key = "group" if "group" in content else "task"
        name = content.get(key)
        if not isinstance(name, str):
            raise InvalidData(f"the group {group!r} lists {item!r}; a member is a name, or a mapping with `task`")
        # `task` must not be passed on: lm-eval then calls every member of a nested group or tag by its name.
        merged = {**overrides, **{other: value for other, value in content.items() if other != key}}
        entry = self.registry.get(name)
        if entry is not None:
            return self.of(entry, merged, trusted, depth)
        if key == "group":
            return (self.branch(f"{group}::{name}", content, overrides, trusted, depth),)
        if "dataset_path" not in merged and "custom_dataset" not in merged:
            raise InvalidData(f"the group {group!r} has the member {name!r}, which no YAML file defines; correct it")
        return (Leaf(f"{group}::{name}", None, merged, trusted),)
