"""Values of zdworker written out as JSON and read back, whatever they are made of: the state that an upgrade carries.

Rules:

* A pair of functions, :func:`encode` and :func:`decode`. What one writes the other reads back, equal and of the same
  types: the dataclasses and enumerations of zdworker, containers of all kinds, bytes.
* The two ends may be two versions of zdworker. A field that a class does not have here is dropped, and one that is
  missing gets its default. So a field with a default can be added without a word here.
* Nothing is executed: a name that is read leads to a class of zdworker or is refused.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import importlib
import json
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

PACKAGE = "zdworker."
"""Where the classes come from that can be written and read."""

_TAG = "~"
"""The key of a JSON object that stands for something else than a dictionary with strings as its keys."""

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


def encode(value: object) -> bytes:
    """Return ``value`` as JSON.

    :raises TypeError: it, or something in it, is not of a kind that can be written.
    """
    return json.dumps(_written(value)).encode()


def decode(data: bytes) -> Any:
    """Return the value that :func:`encode` has written.

    :raises ValueError: that is not what it has written, or names a class that is not here.
    """
    return _read(json.loads(data))


def can_be_written(value: object) -> bool:
    """Return whether :func:`encode` can write ``value``."""
    try:
        encode(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def attributes(owner: object, but: Collection[str] = ()) -> dict[str, Any]:
    """Return the attributes of an object by their names.

    :param but: names of those that belong to this process alone.
    """
    return {name: value for name, value in vars(owner).items() if name not in but}


def set_attributes(owner: object, values: dict[str, Any]) -> None:
    """Set those attributes that the object has; others are of another version of its class."""
    for name, value in values.items():
        if name in vars(owner):
            setattr(owner, name, value)


def _written(value: Any) -> Any:  # noqa: C901, PLR0911  # one for each kind
    if isinstance(value, Enum):
        return {_TAG: "enum", "of": _name(type(value)), "is": _written(value.value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {_TAG: "bytes", "is": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _written(item) for key, item in value.items()}
        return {_TAG: "dict", "is": [[_written(key), _written(item)] for key, item in value.items()]}
    if isinstance(value, collections.deque):
        return {_TAG: "deque", "is": [_written(item) for item in value], "most": value.maxlen}
    for name, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {_TAG: name, "is": [_written(item) for item in value]}
    if isinstance(value, type):
        return {_TAG: "class", "is": _name(value)}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _written(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_TAG: "object", "of": _name(type(value)), "is": fields}
    raise TypeError(f"{type(value).__name__} cannot be written: {value!r:.80}")


def _read(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_read(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _TAG not in plain:
        return {key: _read(item) for key, item in plain.items()}
    if plain[_TAG] == "deque":
        return collections.deque(map(_read, plain["is"]), plain.get("most"))
    return _read_tagged(plain[_TAG], plain.get("of", ""), plain["is"])


def _read_tagged(tag: str, of: str, plain: Any) -> Any:
    match tag:
        case "bytes":
            return base64.b64decode(plain)
        case "dict":
            return {_read(key): _read(item) for key, item in plain}
        case "class":
            return _class(plain)
        case "enum":
            return _class(of)(_read(plain))
        case "object":
            return _object(_class(of), plain)
        case _ if tag in _SEQUENCES:
            return _SEQUENCES[tag]([_read(item) for item in plain])
    raise ValueError(f"an unknown kind of value: {tag!r}")


def _object(kind: Any, plain: dict[str, Any]) -> Any:
    known = {field.name: _read(plain[field.name]) for field in dataclasses.fields(kind) if field.name in plain}
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} cannot be made of {', '.join(known)}: {error}") from error


def _name(kind: type) -> str:
    if not kind.__module__.startswith(PACKAGE):
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a class of zdworker")
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> Any:
    module, _, rest = name.partition(":")
    found: Any = None
    if module.startswith(PACKAGE):
        try:
            found = importlib.import_module(module)
            for word in rest.split("."):
                found = getattr(found, word)
        except (ImportError, AttributeError):
            found = None
    if not isinstance(found, type) or not found.__module__.startswith(PACKAGE):
        raise ValueError(f"there is no class {name!r}")
    return found
