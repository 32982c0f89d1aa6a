"""Flags of the programs that tests run in their own process, one program after another."""

from __future__ import annotations

import types

from absl import flags

_NAMES = (
  "step", "best", "json",  # of both
  "split", "num_examples", "importance", "repeats", "permutation_seed", "new_data_dir",  # evaluate
  "top", "batches",  # inspect
)  # fmt: skip


def define(program: types.ModuleType) -> None:
  """Defines the flags of ``program`` anew, without those that another has left behind."""
  for name in _NAMES:
    if name in flags.FLAGS:
      delattr(flags.FLAGS, name)
  program.define_flags()
