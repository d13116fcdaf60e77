"""YAML as recipes are written in it: the plain words and numbers of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, in which 1e-3 is a text, `no` is false, 010 is eight, and the second of two equal keys wins.
"""

import re
from typing import Any, ClassVar

import yaml

_FLOAT = "tag:yaml.org,2002:float"
# Pattern of a plain scalar (YAML 1.2, section 10.3.2), and the characters that it can begin with
_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    _FLOAT: (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A dictionary; a key that stands twice is an error."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for place, key in enumerate(keys) if key in keys[:place]]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice[0]}' stands twice; leave one of them", node.start_mark
            )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes wherever YAML 1.1 or 1.2 would take it for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True


for _tag, (_pattern, _beginnings) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _beginnings)
_Dumper.add_implicit_resolver(_FLOAT, re.compile(rf"(?:{_SCALARS[_FLOAT][0]})\Z"), _SCALARS[_FLOAT][1])


def read_yaml(text: str, *, source: str) -> Any:
    """The value that a YAML text stands for. Only plain data is made of it.

    Args:
        text: One document.
        source: What it is, for the message of an error.

    Raises:
        ValueError: It is no YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML that can be read: {error}") from error


def write_yaml(tree: Any) -> str:
    """The YAML of plain data, its keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
