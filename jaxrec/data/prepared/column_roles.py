"""Which columns are label, weight, group and time: what a schema says, and what was asked for.

A flag that is overridden in silence is worse than none: without its time column a table is split at
random, and the future leaks. So what the schema leaves open is taken from the flag, and where the
two differ nothing is read.

Read next: jaxrec/features/schema.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxrec import config as config_lib
from jaxrec.config import experiment
from jaxrec.features import schema as schema_lib


def labels_of(texts: Iterable[str], names: Sequence[str]) -> dict[str, Any]:
  """By label column the value that counts as 1, or None, of ``--label``'s form.

  >>> labels_of(["click", "income=rich"], ["click", "income"])
  {'click': None, 'income': 'rich'}
  """
  found: dict[str, Any] = {}
  for text in texts:
    name, equals, positive = text.partition("=")
    is_plain = text in names or not equals
    found[text if is_plain else name] = None if is_plain else positive
  return found


def merged(
  schema: schema_lib.Schema,
  config: experiment.DataConfig,
  labels: Mapping[str, Any],
  where: str,
) -> schema_lib.Schema:
  """``schema`` with the weight, group and time of ``config`` where it has none.

  Args:
    schema: whose columns are learned from.
    config: what was asked for; None: whatever the schema says.
    labels: that were asked for, in their order; none: the schema's.
    where: what to call the schema in a message.

  Raises:
    ConfigError: schema and config name different columns or values, or one is a feature too.
  """
  weight = _one("weight", config.weight, schema.weight, where)
  time = _one("time", config.time, schema.time, where)
  groups = schema.groups or (() if config.group is None else (config.group,))
  if config.group not in (None, *groups):
    raise _differ("group", config.group, where, ", ".join(groups))
  config_lib.require(
    time == schema.time or time not in schema.columns,
    f"{where}: column {time!r} is the time (--time, time=), and a feature too: rows to come would "
    "have values never seen; take it out of 'features', or leave --time out",
  )
  return dataclasses.replace(
    schema,
    labels=_labels(labels, schema.labels, where),
    weight=weight,
    groups=groups,
    time=time,
  )


def _labels(asked: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The labels of a schema, in the order they were asked for."""
  if asked and set(asked) != set(theirs):
    raise _differ("label", ", ".join(asked), where, ", ".join(theirs))
  for name, positive in asked.items():
    if positive is not None and _text(positive) != _text(theirs[name]):
      ours, other = f"{name}={positive}", name + f"={theirs[name]}" * (theirs[name] is not None)
      raise _differ("label", ours, where, other)
  return {name: theirs[name] for name in asked or theirs}


def _one(role: str, asked: str | None, theirs: str | None, where: str) -> str | None:
  if asked is not None and theirs is not None and asked != theirs:
    raise _differ(role, asked, where, theirs)
  return theirs if asked is None else asked


def _differ(role: str, asked: Any, where: str, theirs: str) -> config_lib.ConfigError:
  return config_lib.ConfigError(
    f"{role}: {asked!r} is asked for (--{role}, {role}=), but {where} has {theirs!r}; make the two "
    f"equal, or let {where} alone say it"
  )


def _text(value: Any) -> str:
  """A label's value as a flag spells it."""
  return str(value).lower() if isinstance(value, bool) else str(value)
