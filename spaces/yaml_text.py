"""YAML as people expect it: ``off`` is a word, ``1e-3`` a number, and a key may stand once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import SpecError


class _Loader(yaml.SafeLoader):
    """Safe YAML with the booleans and floats of YAML 1.2; PyYAML's are of 1.1, where ``off: true`` has a key False."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


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
    problem.file = str(path)
    raise problem
