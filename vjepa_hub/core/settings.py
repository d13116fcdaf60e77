"""The base of all settings, and the one grammar in which YAML files, `--set KEY=VALUE` and Python state their values.

A settings class declares each field's type and range; the type decides what a value means:

    1e-4, 3, inf         a number where a number is wanted
    no, on, 12:30, 010   text where text is wanted
    true, false, on, off a truth value where one is wanted
    0.5,1 and [0.5, 1]   the same pair
    none, null, ~        None where the field may be None, else text
    clips.frame_step     keys with dots reach into sections, `masks.0.num_blocks` into lists

Where the type says nothing (`Any`), plain words and numbers are those of YAML 1.2. A text in quotes stays text.
"""

import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from .names import nearest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "PlainText",
    "PositiveRange",
    "Probability",
    "Settings",
    "SettingsError",
    "Share",
    "ShareRange",
    "UnknownSettingError",
    "parse_assignment",
    "read_yaml",
    "require_at_least",
    "write_yaml",
]

_NOTHING = frozenset(("none", "null", "~", ""))
_KIND = "kind"  # field that tells settings of a union apart
_FLOAT_PATTERN = r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"


class SettingsError(ValueError):
    """Invalid value of a setting; the message names the key, the value and the rule."""


class UnknownSettingError(SettingsError, KeyError):
    """Key that no setting has; the message names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


class PlainText(str):
    """Unquoted scalar of a YAML text or command line, whose meaning the field's type decides."""

    __slots__ = ()


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError(
            "range", "must have the smaller number first; give the same number twice for a fixed value"
        )
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
"""Number from 0 to 1."""
Share = Annotated[float, Field(gt=0, le=1)]
"""Part of a whole, above 0 and at most 1."""
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]
"""Smallest and largest value, both above 0."""
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""Smallest and largest part of a whole."""


class Settings(BaseModel):
    """Base of settings: frozen, every key known, every value of its field's type and range.

    Constructing one with a value that does not fit raises a `SettingsError`, with an unknown key an
    `UnknownSettingError`. Numbers are finite unless a field allows otherwise with `Field(allow_inf_nan=True)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    # Of error messages, such as "recipe"; by default the name of the class in words
    settings_name: ClassVar[str] = ""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _translate(error, type(self)) from None

    # Sections inside a tree are then validated in place, so that errors name the whole way to a key
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Self":
        """Settings from nested plain values, such as `read_yaml` returns.

        Raises:
            SettingsError: A key is unknown, a value is invalid, or `tree` has no keys.
        """
        if not isinstance(tree, Mapping):
            raise SettingsError(f"{_words(cls)} is {_shown(tree)}, but must have keys and values")
        return cls(**{str(key): value for key, value in tree.items()})

    def to_tree(self) -> dict[str, Any]:
        """All values as plain data for YAML and JSON (tuples become lists), which `from_tree` takes back."""
        return _plain(self.model_dump())

    def with_values(self, **values: Any) -> "Self":
        """Settings with other values of some fields.

        Raises:
            SettingsError: A key is unknown, or a value is invalid.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **values})

    def with_overrides(self, overrides: Mapping[str, Any] | Iterable[str]) -> "Self":
        """Settings with values as `--set` states them. All are set together: two may be possible only together.

        Args:
            overrides: `{"clips.frame_step": 2}`, or `["clips.frame_step=2"]`. A key without dots may be that of a
                section's field, where only one section has it.

        Raises:
            SettingsError: A text is no KEY=VALUE, a key is unknown or stands in several sections, or a value is
                invalid.
        """
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_assignment, overrides)
        tree = self.to_tree()
        for key, value in pairs:
            path = self._locate(key)
            place = _assign(tree, path, value)
            if path[-1] == _KIND:  # what only settings of the kind before have goes
                kinds = [option for option in _types_at(type(self), path[:-1]) if _is_of_kind(option, value)]
                for name in [name for name in place if kinds and name not in kinds[0].model_fields]:
                    del place[name]
        return type(self).from_tree(tree)

    def flatten(self) -> dict[str, Any]:
        """All values by their keys with dots, such as `training.learning_rate`."""
        return _flatten(self.to_tree())

    def changes_from(self, other: "Self") -> dict[str, Any]:
        """Values that differ from those of other settings of the same class, by their keys with dots."""
        changes: dict[str, Any] = {}
        for name in type(self).model_fields:
            own, theirs = getattr(self, name), getattr(other, name)
            if isinstance(own, Settings) and type(own) is type(theirs):
                changes |= {f"{name}.{key}": value for key, value in own.changes_from(theirs).items()}
            elif own != theirs:
                changes[name] = _plain(own)
        return changes

    def sections(self) -> dict[str, list[str]]:
        """Names of the fields of each field that is itself made of settings; where keys without dots are sought."""
        return {
            name: list(type(value).model_fields)
            for name, value in ((name, getattr(self, name)) for name in type(self).model_fields)
            if isinstance(value, Settings)
        }

    def _locate(self, key: str) -> list[str]:
        parts, top = key.split("."), list(type(self).model_fields)
        if parts[0] in top:
            return parts
        sections = self.sections()
        owners = [section for section, names in sections.items() if key in names]
        if len(owners) == 1:
            return [owners[0], key]
        if owners:
            choices = " or ".join(f"{section}.{key}" for section in owners)
            raise UnknownSettingError(f"'{key}' stands in more than one section; write {choices}")
        known = [*top, *(f"{section}.{name}" for section, names in sections.items() for name in names)]
        raise UnknownSettingError(
            _unknown(_words(type(self)), key, [*known, *(name.split(".")[-1] for name in known)])
        )

    @model_validator(mode="before")
    @classmethod
    def _read_plain_text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = {name: cls.model_fields[name].annotation for name in values.keys() & cls.model_fields.keys()}
        return {**values, **{name: _meaning(values[name], hint, name) for name, hint in fields.items()}}


def require_at_least(least: float, **values: float | None) -> None:
    """Check arguments that are no settings; None is not checked.

    Raises:
        SettingsError: A value is below `least`.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise SettingsError(f"{name} is {value}, but must be at least {least}")


# ------------------------------------------------------------------------------------------------ grammar


def parse_assignment(text: str) -> tuple[str, Any]:
    """Key and value of a `KEY=VALUE` of a command line, the value as YAML.

    Raises:
        SettingsError: There is no key, no equals sign, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"'{text}' sets nothing; write KEY=VALUE, such as learning_rate=1e-3")
    return key.strip(), read_yaml(value, source=f"the value of '{text}'")


def _meaning(value: Any, annotation: Any, key: str) -> Any:
    """Value as a field of a type reads it: texts become what the type wants, all else stays."""
    options = _options(annotation)
    if isinstance(value, bool) and {int, float} & set(options) and bool not in options:
        raise PydanticCustomError("number_type", "must be a number", {"key": key, "value": value})
    if not isinstance(value, str):
        return _meaning_of_items(value, options, key)
    text = value.strip()
    is_word = isinstance(value, PlainText) or (str not in options and not isinstance(value, _Quoted))
    if type(None) in options and is_word and text.lower() in _NOTHING:
        return None
    if Any in options:
        return _yaml_scalar(value) if isinstance(value, PlainText) else str(value)
    literals = [option for option in options if typing.get_origin(option) is Literal]
    choices = {str(choice): choice for literal in literals for choice in typing.get_args(literal)}
    if str in options or text in choices:
        return choices.get(text, str(value))  # numbers too: a literal takes no text for them
    if _item_annotation(options) is not None and not isinstance(value, _Quoted):
        if text.startswith("[") and text.endswith("]"):
            return _meaning_of_items(read_yaml(text, source=f"'{text}'"), options, key)
        return _meaning_of_items([PlainText(part.strip()) for part in text.split(",") if part.strip()], options, key)
    if {int, float} & set(options) and re.fullmatch(f"{_FLOAT_PATTERN}|[-+]?inf", text.lower()):
        return float(text.lower().replace(".inf", "inf"))
    return str(value)


def _meaning_of_items(value: Any, options: Sequence[Any], key: str) -> Any:
    if isinstance(value, list | tuple):
        item = _item_annotation(options)
        return [_meaning(entry, Any if item is None else item, f"{key}.{place}") for place, entry in enumerate(value)]
    if isinstance(value, Mapping):
        hint = next((option for option in options if typing.get_origin(option) in _MAPPINGS), None)
        of_values = typing.get_args(hint)[1] if hint is not None else None
        if of_values is None and {Any, dict, Mapping} & set(options):
            of_values = Any
        if (
            of_values is None
        ):  # a section reads its own values; pydantic wants its kind, which chooses it, as plain text
            return {str(name): str(entry) if name == "kind" else entry for name, entry in value.items()}
        return {str(name): _meaning(entry, of_values, f"{key}.{name}") for name, entry in value.items()}
    return value


_MAPPINGS = (dict, Mapping, typing.get_origin(typing.Mapping))
_SEQUENCES = (tuple, list, Sequence, typing.get_origin(typing.Sequence))


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types that a field may have, without `Annotated` and unions."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(option for part in typing.get_args(annotation) for option in _options(part))
    return (annotation,)


def _item_annotation(options: Sequence[Any]) -> Any:
    """The type of a sequence field's items; None where no option is a sequence."""
    for option in options:
        if typing.get_origin(option) in _SEQUENCES:
            return typing.get_args(option)[0]
        if option in (tuple, list):
            return Any
    return None


def _is_of_kind(option: type["Settings"], kind: str) -> bool:
    return _KIND in option.model_fields and kind in typing.get_args(option.model_fields[_KIND].annotation)


def _types_at(settings: type["Settings"], path: Sequence[str | int]) -> list[type["Settings"]]:
    return _walk(settings, path)[1]


def _walk(settings: type["Settings"], path: Sequence[str | int]) -> tuple[str, list[type["Settings"]]]:
    """Key with dots at the end of a path, and the classes of settings that may stand there.

    The names of types and kinds, which pydantic puts into the place of an error, are left out of the key.
    """
    keys: list[str] = []
    options: tuple[Any, ...] = (settings,)
    for part in path:
        sections = _settings_among(options)
        holder = next((section for section in sections if part in section.model_fields), None)
        if holder is not None:
            keys.append(str(part))
            options = _options(holder.model_fields[str(part)].annotation)
        elif str(part).isdigit():
            keys.append(str(part))
            options = _options(_item_annotation(options))
        elif any(_is_of_kind(section, str(part)) for section in sections):
            options = tuple(section for section in sections if _is_of_kind(section, str(part)))
        elif any(typing.get_origin(option) in _MAPPINGS or option is dict for option in options):
            keys.append(str(part))
            options = (Any,)
    return ".".join(keys), _settings_among(options)


def _settings_among(options: Sequence[Any]) -> list[type["Settings"]]:
    return [option for option in options if isinstance(option, type) and issubclass(option, Settings)]


# ------------------------------------------------------------------------------------------------ errors

# In place of pydantic's words
_RULES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must have keys and values",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "list_type": "must be a list",
    "model_type": "must have keys and values",
    "string_type": "must be text",
    "too_long": "must have fewer values",
    "tuple_type": "must be a list",
}


def _translate(error: ValidationError, settings: type["Settings"]) -> SettingsError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause
    if first["type"] == "extra_forbidden":
        *path, key = first["loc"]
        where, owners = _walk(settings, path)
        return UnknownSettingError(_unknown(where or _words(settings), str(key), owners[0].model_fields))
    return SettingsError(_message(_walk(settings, first["loc"])[0], first, settings))


def _message(where: str, details: ErrorDetails, settings: type["Settings"]) -> str:
    kind, said, facts = details["type"], details["msg"], details.get("ctx", {})
    if kind == "value_error":
        return said.removeprefix("Value error, ")  # rules over several fields name their fields themselves
    if kind == "number_type":
        # The key is that of the value in its section, at which the error stands
        *sections, _ = (*_walk(settings, details["loc"])[0].split("."), "")
        return f"{'.'.join(filter(None, (*sections, facts['key'])))} is {facts['value']}, but {said}"
    section, _, key = where.rpartition(".")
    if kind == "missing" and key.isdigit():
        return f"{section} is {_shown(details['input'])}, but must have more values"
    if kind == "missing":
        return f"{section or _words(settings)} has no '{key}', but needs one"
    if kind == "union_tag_not_found":
        return f"{where} has no '{_KIND}', but needs one"
    if kind == "union_tag_invalid":
        expected = " or ".join(facts["expected_tags"].split(", "))
        return f"{where}.{_KIND} is '{facts['tag']}', but must be {expected}"
    rule = _RULES.get(kind) or said.replace("Input should ", "must ")
    return f"{where or _words(settings)} is {_shown(details['input'])}, but {rule}"


def _unknown(where: str, key: str, known: Iterable[str]) -> str:
    return f"{where} has no '{key}'; the nearest is '{nearest(key, known)}'"


def _words(settings: type["Settings"]) -> str:
    name = settings.settings_name or re.sub(r"(?<!^)(?=[A-Z])", " ", settings.__name__).lower()
    return f"the {name.removesuffix(' settings')}"


def _shown(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


# ------------------------------------------------------------------------------------------------ trees


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> Any:
    """Set the value at the end of a path; returns the mapping or list that has it."""
    place: Any = tree
    for part in path[:-1]:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_key_in(place, part, path)]
    place[_key_in(place, path[-1], path)] = value
    return place


def _key_in(place: Any, part: str, path: Sequence[str]) -> str | int:
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise UnknownSettingError(f"'{'.'.join(path)}': there is {_shown(place)}, which has no '{part}'")
    if not part.isdigit() or int(part) >= len(place):
        raise UnknownSettingError(
            f"'{'.'.join(path)}': the list has {len(place)} entries, counted from 0, and no '{part}'"
        )
    return int(part)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if entries is None:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in entries:
        leaves |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_tree()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------ YAML

# Plain scalars of YAML 1.2 (its section 10.3.2): PyYAML reads 1.1, where `no` is false and 1e-3 a text
_SCALARS: Mapping[str, tuple[str, Any]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", int),
    "float": (_FLOAT_PATTERN, lambda text: float(text.replace(".inf", "inf").replace(".Inf", "inf"))),
}


def _yaml_scalar(text: str) -> Any:
    for pattern, read in _SCALARS.values():
        if re.fullmatch(pattern, text):
            return read(text)
    return str(text)


class _Quoted(str):
    """Scalar in quotes."""

    __slots__ = ()


class _Loader(yaml.BaseLoader):
    """Mappings, lists and texts; a plain scalar stays a `PlainText`. A few lines of references never end: refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node that is written out."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references such as *name are not read: write the value out")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        """The text of a scalar."""
        return PlainText(node.value) if node.style is None else _Quoted(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A dictionary; a key that stands twice is an error."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counts = Counter(key for key in keys if isinstance(key, str))
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice[0]}' stands twice; leave one of them", node.start_mark
            )
        return super().construct_mapping(node, deep=True)


_Loader.add_constructor(
    "tag:yaml.org,2002:str",
    lambda loader, node: loader.construct_scalar(node),
)


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes wherever YAML 1.1 or 1.2 would take it for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?i:none|null)\Z"), list("nN"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT_PATTERN})\Z"), list("-+.0123456789"))


def read_yaml(text: str, *, source: str) -> Any:
    """The mappings, lists and texts of a YAML document. What a plain text means is decided by a field's type.

    Args:
        text: One document.
        source: Name of the document in the message of an error.

    Raises:
        SettingsError: It is no YAML, has references (`*name`), or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{source} is no YAML that can be read: {error}") from error


def write_yaml(tree: Any) -> str:
    """The YAML of plain data, its keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
