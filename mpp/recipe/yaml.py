"""The YAML of recipes: the core schema of YAML 1.2, in which a value is what it looks like.

PyYAML speaks YAML 1.1, where `3e-4` is text, `on` is true, `010` is eight, `1:30` is ninety and `2024-01-01` a date.
Here a number is a number, with or without a dot or an exponent; only `true` and `false` are booleans; only `null`,
`~` and nothing at all are null; all the rest is text. Aliases (`*name`) and tags of other types are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.resolver import Resolver

NULL, BOOL, INT, FLOAT, TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))

_CORE_SCHEMA = [  # tag, what such a scalar looks like, and the characters that one can start with
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
]

_LIST = "tag:yaml.org,2002:seq"
DEEPEST = 32
"""Levels of nesting; no recipe needs more, and Python's own limit is not far above."""


class Loader(yaml.SafeLoader):
    """Composes nodes of the core schema; `parse` turns them into values, so that each keeps its line."""

    yaml_implicit_resolvers = {}

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Compose as PyYAML does, but refuse deep nests, and aliases, whose values cannot be overridden one by one."""
        problem = "aliases (*name) are not read, write the value out" if self.check_event(yaml.AliasEvent) else ""
        if self.depth >= DEEPEST:
            problem = f"nested more than {DEEPEST} deep"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back as the same value, quoted so that readers of YAML 1.1 agree."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value out wherever it occurs."""
        return True

    def text(self, text: str) -> yaml.Node:
        """Text, in quotes wherever YAML 1.1 would see something else in it."""
        if any(separator in text for separator in "\r\x85\u2028\u2029"):
            return self.represent_scalar(TEXT, text, style='"')  # YAML takes them for line breaks and folds them
        elsewhere = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))
        return self.represent_scalar(TEXT, text, style=None if elsewhere == TEXT else "'")

    def entries(self, entries: dict[str, Any]) -> yaml.Node:
        """A mapping: one key to a line, but a single scalar, as in a duration, stays in its parent's line."""
        brief = len(entries) == 1 and not isinstance(next(iter(entries.values())), (dict, list))
        return self.represent_mapping("tag:yaml.org,2002:map", entries.items(), flow_style=brief or None)


_YAML_1_1 = Resolver()
for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
Dumper.add_representer(str, Dumper.text)
Dumper.add_representer(dict, Dumper.entries)
Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(_LIST, items, flow_style=True))

_READ: dict[str, Callable[[str], Any]] = {
    NULL: lambda text: None,
    BOOL: lambda text: text.lower() == "true",
    INT: lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    FLOAT: lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    TEXT: str,
}


def read_scalar(tag: str, text: str) -> Any:
    """The value of a scalar of the core schema."""
    if tag not in _READ:
        raise ValueError(f"the tag {tag!r} is not read in recipes")
    return _READ[tag](text)


def in_block(value: Any) -> str:
    """`value` as a YAML document."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)


def in_line(value: Any) -> str:
    """`value` as YAML in one line, as one would write it after `key=`."""
    text = yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
