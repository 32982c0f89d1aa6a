"""Where the files of a known data set lie.

Read next: jaxrec/data/registry.py.
"""

from __future__ import annotations

import pathlib

from jaxrec import config as config_lib
from jaxrec import experiment


def find(config: experiment.DataConfig, name: str) -> str:
  """The file ``name`` in ``config.data_dir``.

  Raises:
    ConfigError: no folder was named, or the file is not there.
  """
  config_lib.require(
    bool(config.data_dir),
    f"dataset {config.dataset}: --data_dir names the folder that holds {name}",
  )
  path = pathlib.Path(config.data_dir or "") / name
  config_lib.require(path.is_file(), f"dataset {config.dataset}: {path}: no such file")
  return str(path)
