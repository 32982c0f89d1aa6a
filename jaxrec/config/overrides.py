"""``--set key=value``: any field of a config, as text.

A field's type says how its text is read, so a new field can be set the moment it is declared.

Read next: jaxrec/config/tables.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from jaxrec import config as config_lib


def with_overrides(config: Any, overrides: Iterable[str]) -> Any:
  """``config`` with ``key=value`` texts applied; nested keys are dotted.

  >>> from jaxrec.config.experiment import ModelConfig
  >>> with_overrides(ModelConfig(), ["top_mlp=512,256,1", "cross_rank=8"]).top_mlp
  (512, 256, 1)

  Raises:
    ConfigError: unknown key, or a value of the wrong kind; the message names both.
  """
  for override in overrides:
    key, equals, text = override.partition("=")
    config_lib.require(bool(equals), f"--set {override}: expected key=value")
    config = _with_value(config, key.strip().split("."), text.strip(), key)
  return config


def _with_value(config: Any, path: list[str], text: str, key: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(config)}
  hint = config_lib.did_you_mean(path[0], fields)
  config_lib.require(path[0] in fields, f"--set {key}: no such field; {hint}")
  value = getattr(config, path[0])
  if dataclasses.is_dataclass(value):
    known = [f"{path[0]}.{f.name}" for f in dataclasses.fields(value)]
    config_lib.require(len(path) > 1, f"--set {key}: is a group; set one of {', '.join(known)}")
    return dataclasses.replace(config, **{path[0]: _with_value(value, path[1:], text, key)})
  config_lib.require(len(path) == 1, f"--set {key}: {path[0]} is a single value, not a group")
  kind = typing.get_type_hints(type(config))[path[0]]
  return dataclasses.replace(config, **{path[0]: _parse(kind, text, key)})


def _parse(kind: Any, text: str, key: str) -> Any:
  if typing.get_origin(kind) in (types.UnionType, typing.Union):
    kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    is_word = typing.get_origin(kind) is Literal and text in typing.get_args(kind)
    if text.lower() in ("none", "null") and not is_word:
      return None
  if typing.get_origin(kind) is Literal:
    known = typing.get_args(kind)
    hint = config_lib.did_you_mean(text, known)
    config_lib.require(text in known, f"--set {key}: {text!r}; {hint}, or null")
    return text
  if typing.get_origin(kind) is tuple:
    inner = typing.get_args(kind)[0]
    return tuple(_parse(inner, part.strip(), key) for part in _parts(text) if part.strip())
  if kind is bool:
    config_lib.require(
      text.lower() in ("true", "false", "1", "0"),
      f"--set {key}: expected true or false, got {text!r}",
    )
    return text.lower() in ("true", "1")
  try:
    return kind(text)
  except ValueError:
    raise config_lib.ConfigError(f"--set {key}: expected {kind.__name__}, got {text!r}") from None


def _parts(text: str) -> list[str]:
  """What commas separate, but for those in brackets; brackets around the whole are left out.

  >>> _parts("(.*=row_wise(data, model), 2)")
  ['.*=row_wise(data, model)', ' 2']
  """
  depths = list(itertools.accumulate((sign in "([") - (sign in ")]") for sign in text))
  if text[:1] in ("(", "[") and depths[-1] == 0 and 0 not in depths[:-1]:
    return _parts(text[1:-1])
  cuts = [i for i, sign in enumerate(text) if sign == "," and depths[i] == 0]
  starts = [0, *(i + 1 for i in cuts)]
  return [text[i:j] for i, j in zip(starts, [*cuts, len(text)], strict=True)]
