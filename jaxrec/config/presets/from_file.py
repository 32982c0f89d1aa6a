"""Reads an experiment from a user's own Python file: ``--config=my.py`` or ``--config=my.py:big``.

The file defines ``get_config()``, or ``get_config(preset)`` for several presets, and returns an
``ExperimentConfig``, as the config files of many JAX projects do. The file is a program: it runs.

Read next: jaxrec/config/experiment.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator

from jaxrec.config import ConfigError, require
from jaxrec.config.experiment import ExperimentConfig

_MODULE = "jaxrec_user_config"


def split_name(name: str) -> tuple[str, str | None] | None:
  """Splits the name of a config into a file and a preset; None if it names no Python file.

  >>> split_name("my.py:big"), split_name("my.py"), split_name("kaggle")
  (('my.py', 'big'), ('my.py', None), None)
  """
  parts = re.fullmatch(r"(.*\.py)(?::(.*))?", name)
  return (parts.group(1), parts.group(2)) if parts else None


def read_config(path: str, preset: str | None = None) -> ExperimentConfig:
  """Runs the file and returns what its ``get_config`` returns.

  Args:
    path: The Python file.
    preset: The one argument of ``get_config``; None calls it without one.

  Raises:
    ConfigError: No such file, an error in it (with its line), no ``get_config``, or a result that
      is not an ``ExperimentConfig``.
  """
  flag = f"--config={path}" if preset is None else f"--config={path}:{preset}"
  require(os.path.isfile(path), f"{flag}: no file {path}")
  spec = importlib.util.spec_from_file_location(_MODULE, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[_MODULE] = module  # where dataclasses of the file look their types up
  with _named_errors(flag, path):
    spec.loader.exec_module(module)
  require(
    callable(getattr(module, "get_config", None)),
    f"{flag}: the file defines no function get_config; it returns an ExperimentConfig of "
    "jaxrec.config.experiment, such as "
    "dataclasses.replace(jaxrec.config.presets.get('kaggle'), steps=100)",
  )
  with _named_errors(flag, path):
    config = module.get_config() if preset is None else module.get_config(preset)
  require(
    isinstance(config, ExperimentConfig),
    f"{flag}: get_config returned {type(config).__name__}; expected an ExperimentConfig of "
    "jaxrec.config.experiment",
  )
  return config


@contextlib.contextmanager
def _named_errors(flag: str, path: str) -> Iterator[None]:
  """Turns errors of the file's own code into ConfigErrors that name the flag and the line."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(f"{flag}: {error}") from error
  except Exception as error:
    raise ConfigError(f"{flag}: {type(error).__name__}{_place(error, path)}: {error}") from error


def _place(error: Exception, path: str) -> str:
  """Names the last line of the file that an error passed through."""
  if isinstance(error, SyntaxError):
    return ""  # which names its line itself
  frames = traceback.extract_tb(error.__traceback__)
  lines = [
    frame.lineno for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(path)
  ]
  return f" in line {lines[-1]}" if lines else ""
