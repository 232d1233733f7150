"""YAML files that people write: a key that is given twice is refused, and a day stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from csrm_tasks.errors import ConfigError


class OneOfEachKey(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML is untyped
    """PyYAML's, which takes the last of a key that is given twice: here that is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises PyYAML's error where a key is given twice."""
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given more than once", key.start_mark
                )
            if key.tag == "tag:yaml.org,2002:bool":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key.value!r} is true or false to YAML; put it in quotes",
                    key.start_mark,
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


# A day is text, as in all else that a market reads: YAML would make a date of it.
OneOfEachKey.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; raises :class:`ConfigError` where it is no mapping."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), OneOfEachKey)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(e).split())}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(raw).__name__}")
    return raw
