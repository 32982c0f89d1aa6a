"""Frozen dataclasses as nested plain values, and back, every value checked by its field's type.

Read next: jaxrec/config/experiment.py.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from jaxrec import config


def to_plain(value: Any) -> dict[str, Any]:
  """A dataclass, and those inside it, as dicts."""
  return {
    field.name: to_plain(inner) if dataclasses.is_dataclass(inner) else inner
    for field in dataclasses.fields(value)
    for inner in [getattr(value, field.name)]
  }


def from_plain(kind: Any, values: Any, where: str = "") -> Any:
  """A ``kind`` of what ``to_plain`` made; fields that are missing have their defaults.

  Raises:
    ConfigError: an unknown field, or a value of the wrong kind; the message names it.
  """
  config.require(
    isinstance(values, dict), f"{where.rstrip('.') or 'config'}: expected an object, got {values!r}"
  )
  kinds = typing.get_type_hints(kind)
  for name in values:
    config.require(
      name in kinds, f"{where}{name}: no such field; {config.did_you_mean(name, kinds)}"
    )
  return kind(**{name: _value(kinds[name], value, where + name) for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(kind):
    return from_plain(kind, value, f"{where}.")
  if typing.get_origin(kind) in (types.UnionType, typing.Union):
    if value is None:
      return None
    kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
  if typing.get_origin(kind) is Literal:
    known = typing.get_args(kind)
    config.require(value in known, f"{where}: expected one of {known}, got {value!r}")
    return value
  if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
    return tuple(_value(typing.get_args(kind)[0], part, where) for part in value)
  if kind is float and type(value) is int:
    return float(value)
  expected = getattr(kind, "__name__", str(kind))
  config.require(type(value) is kind, f"{where}: expected {expected}, got {value!r}")
  return value
