"""Plain values, as they come from YAML, to settings: every name is known, and every value of its type."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


def build_checked(cls: type, tree: Any, where: str, left_out: tuple[str, ...] = ()) -> Any:
    """A settings object from plain values.

    Args:
        cls: A dataclass.
        tree: Its fields.
        where: What the values are, for messages.
        left_out: Fields that are not to be given.

    Raises:
        KeyError: An unknown field.
        ValueError: A field is missing, of another type, or refused by the class.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in left_out}
    given = checked_fields(where, tree, hints)
    required = [
        entry.name
        for entry in dataclasses.fields(cls)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in given:
            raise ValueError(f"{where} has no '{name}', but needs one")
    return cls(**given)


def checked_fields(where: str, tree: Any, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values by their names, each of the type of its hint.

    Args:
        where: What the values are, for messages.
        tree: Names and values; None: none.
        hints: For each name that there is, its type.

    Raises:
        KeyError: An unknown name.
        ValueError: A value of another type.
    """
    tree = as_mapping(where, tree)
    require_known(where, tree, hints)
    return {name: checked(f"{where}.{name}", value, hints[name]) for name, value in tree.items()}


def as_mapping(where: str, tree: Any) -> Mapping[str, Any]:
    """What has keys and values; None has none.

    Raises:
        ValueError: It is something else.
    """
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} is {tree!r}, but must have keys and values")
    return tree


def require_known(where: str, tree: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a KeyError for the first key that is not known, naming the nearest that is."""
    for key in tree:
        if key not in known:
            raise KeyError(unknown_key(where, str(key), known))


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """What is said of a key that is not known."""
    return f"{where} has no '{key}'; the nearest is '{nearest(key, known)}'"


def nearest(key: str, known: Iterable[str]) -> str:
    """Of some names the one that is most like another."""
    return difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)[0]


def checked(where: str, value: Any, hint: Any) -> Any:
    """The value, if it is of the type of the hint. A whole float passes for an integer, and an integer for a float.

    Raises:
        ValueError: It is of another type.
    """
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    accepted = typing.get_args(hint) if is_union else (hint,)
    plain = {part if isinstance(part, type) else typing.get_origin(part) for part in accepted}
    if type(value) in plain or (value is None and type(None) in plain) or (isinstance(value, str) and str in plain):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in plain:
        return value
    if isinstance(value, float) and value.is_integer() and int in plain:
        return int(value)
    if isinstance(value, list | tuple) and tuple in plain:
        return tuple(checked(where, entry, float) for entry in value)
    names = " or ".join("null" if part is type(None) else getattr(part, "__name__", str(part)) for part in accepted)
    raise ValueError(f"{where} is {value!r}, but must be {names}")
