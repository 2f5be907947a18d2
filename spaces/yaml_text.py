"""YAML 1.2 as people expect it: ``off`` and ``1:30`` are words, ``1e-3`` is a number, and a key may stand once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import SpecError

_TAG = "tag:yaml.org,2002:"
# What PyYAML takes from YAML 1.1 is left out: there `off` is a truth value, `032` 26, `1:30` 90 and a date a date.
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """Safe YAML with the plain values of YAML 1.2, merge keys (``<<: *name``), and each key once in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, not where it is constructed: merging changes a mapping, and a key may stand beside a merged one.
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count((key.tag, key.value)) > 1:
                raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if event.anchor in self._open:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", event.start_mark)
            return super().compose_node(parent, index)
        anchor = self.peek_event().anchor
        self._open.append(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []  # anchors of the nodes around the one that is read


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_TAG + "int", _int)


def read_yaml(path: Path) -> Any:
    """The value a YAML file holds.

    Raises:
        SpecError: not YAML, or not text; names the file.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        problem = SpecError("(whole file)", "text", f"not YAML: {' '.join(str(error).split())}")
    except UnicodeDecodeError:
        problem = SpecError("(whole file)", "bytes", "a UTF-8 text file is needed")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without an end
        problem = SpecError("(whole file)", "text", f"not YAML that can be read: {error}")
    problem.file = str(path)
    raise problem
