"""States whose tables lie in lines, as on one TPU, and their bits beside those of others."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from jaxrec import tables
from jaxrec.tables.layouts import packed_rows


@contextlib.contextmanager
def as_on_a_tpu():
  """Whatever chooses a layout within chooses as on a TPU."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      packed_rows, "are_worth_it", lambda platform, columns: columns < packed_rows.LANES
    )
    yield


def laid_out(state, where):
  """``state`` as the layouts of ``where`` have it."""
  found, row_state = tables.laid_out(state.tables, state.row_state, where)
  return dataclasses.replace(state, tables=found, row_state=row_state)


def bits(array):
  array = np.asarray(array)
  return array.view(f"u{array.dtype.itemsize}")


def assert_same_bits(ours, theirs):
  """Of all leaves; the trees are of one structure, placement and all."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), ours, theirs)


def as_words(state):
  """``state``, its key as numbers that NumPy can have."""
  return dataclasses.replace(state, rng=jax.random.key_data(state.rng))
