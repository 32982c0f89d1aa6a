"""What jaxrec uses of JAX beyond its public names is there, and in one file."""

from __future__ import annotations

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import jax_internals
from tests import layering_test, repository

PRIVATE = ("jax._src", "jax.extend", "jax.interpreters", "jaxlib")
HOW_TO_MEND = (
  f"JAX {jax.__version__}; the suite was run with {', '.join(jax_internals.VERSIONS)}: "
  "if the tests of this file pass, run the whole suite and add the version"
)


def private_imports(path) -> list[str]:
  return [
    name
    for _, name, _ in layering_test.imported_names(ast.parse(path.read_text(encoding="utf-8")))
    if any(f"{name}.".startswith(f"{private}.") for private in PRIVATE)
  ]


def test_this_version_of_jax_is_one_that_the_suite_was_run_with():
  minor = re.match(r"\d+\.\d+", jax.__version__).group()
  known = [re.match(r"\d+\.\d+", version).group() for version in jax_internals.VERSIONS]
  assert minor in known, HOW_TO_MEND


def test_private_names_of_jax_are_in_one_file():
  paths = {path for path in repository.ROOT.glob("jaxrec/**/*.py") if private_imports(path)}
  assert paths == {repository.ROOT / "jaxrec" / "jax_internals.py"}
  assert private_imports(repository.ROOT / "train.py") == []


def test_an_import_of_a_private_name_is_found(tmp_path):
  path = tmp_path / "module.py"
  path.write_text("import jax\nfrom jax.extend.core import primitives\nimport jaxlib_x\n")
  assert private_imports(path) == ["jax.extend.core.primitives"]


def exclusive_or(a, b):
  return a ^ b


@pytest.mark.parametrize("compiled", [False, True])
def test_a_scatter_combines_old_and_new_and_drops_what_is_out_of_range(compiled):
  rng = np.random.default_rng(0)
  operand = rng.integers(0, 2**32, (5, 3), dtype=np.uint32)
  updates = rng.integers(0, 2**32, (6, 3), dtype=np.uint32)
  lines = np.array([4, 0, 4, 7, 2, 4], np.int32)
  expected = operand.copy()
  for line, update in zip(lines, updates, strict=True):
    if line < 5:
      expected[line] ^= update
  numbers = jax.lax.ScatterDimensionNumbers((1,), (0,), (0,))

  def scatter(operand, lines, updates):
    return jax_internals.scatter(operand, lines[:, None], updates, numbers, exclusive_or)

  got = (jax.jit(scatter) if compiled else scatter)(*map(jnp.asarray, (operand, lines, updates)))
  np.testing.assert_array_equal(got, expected, err_msg=HOW_TO_MEND)


def test_threefry_is_that_of_the_paper():
  """The vectors of Random123, which every implementation of Threefry-2x32 (20 rounds) has."""
  vectors = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
  ]
  for key, counts, expected in vectors:
    counts = jnp.array(counts, jnp.uint32)[:, None]
    got = jax_internals.threefry_2x32(jnp.array(key, jnp.uint32), counts)
    np.testing.assert_array_equal(np.ravel(got), np.array(expected, np.uint32), HOW_TO_MEND)


def test_a_process_by_itself_is_a_group_of_one():
  assert jax_internals.process_group() == (None, 0, 1), HOW_TO_MEND
