"""Shipped experiments as values, by name: ``--config=NAME``; or a user's own: ``--config=my.py``.

A config named like a data set is also what ``--dataset=NAME`` starts from; and one named like a
data set and a model, as ``adult_wide_deep``, what ``--dataset=adult --model=wide_deep`` does.

Read next: jaxrec/config/presets/tables.py, jaxrec/config/presets/criteo.py.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping

from jaxrec.config import ConfigError, did_you_mean
from jaxrec.config.experiment import ExperimentConfig
from jaxrec.config.presets import criteo, from_file, tables

# Models that have another's settings: its parts, and what it is measured against.
_SETTINGS_OF: Mapping[str, str] = types.MappingProxyType({
  **dict.fromkeys(("wide", "deep"), "wide_deep"),
  **dict.fromkeys(("full_attention", "din", "average_pooling", "sim_hard"), "eta"),
})  # fmt: skip


def names() -> str:
  """The shipped configs' names, comma-separated."""
  return ", ".join(sorted(_makers()))


def get(name: str) -> ExperimentConfig:
  """Returns the shipped config of this name, or that of a file: ``my.py``, ``my.py:preset``.

  Raises:
    ConfigError: There is no such config, or the file does not give one.
  """
  if file := from_file.split_name(name):
    return from_file.read_config(*file)
  makers = _makers()
  if name not in makers:
    raise ConfigError(f"--config: no config {name!r}; {did_you_mean(name, makers)}")
  return makers[name]()


def for_dataset(name: str | None, model: str | None = None) -> ExperimentConfig:
  """What a run of the data set ``name`` starts from: the config named like it and ``model``, or
  like it alone, or the defaults.
  """
  makers = _makers()
  plain = makers.get(name or "", ExperimentConfig)
  alike = makers.get(f"{name}_{_SETTINGS_OF.get(model or '', model)}", plain)
  return makers.get(f"{name}_{model}", alike)()


def _makers() -> dict[str, Callable[[], ExperimentConfig]]:
  return {**criteo.MAKERS, **tables.MAKERS}
