"""Distances of histories' steps by their bits, where a step is told by the number of its row.

XLA gathers the words of every step first. On a TPU each step's words, a few bytes, then fill a line
of 128 lanes and are moved by scalar instructions: for 2 MB of distances (B = 512, L = 1,024) 256 MB
are written and read again. The kernel here never spells the words out. It counts the bits in which
a candidate differs from *every row*, 8 candidates times 128 rows at a time, keeps these distances
in VMEM, and looks the steps up in them. A permutation of lanes reads 1,024 steps at once, but has
to be made for every 128 rows; so it is good where rows are few for the steps there are, as in a
batch, whose histories repeat them. ``is_worth_a_kernel`` says how few.

A history whose words stand there already, one for all candidates or one for each, needs no kernel:
``simhash.hamming(words, asked[:, None])`` XLA compiles to one pass, L in the lanes, without a copy.

*Source*: ours; what is computed is ETA's search (Chen et al. 2021, arXiv 2108.04468, section 3).
*Read next*: jaxrec/layers/lsh_attention.py.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrec.layers import simhash

_LANES = 128
_SUBLANES = 8  # candidates at a time
_GROUP = 4 * _LANES  # steps looked up together: one line alone leaves units that permute idle
_BLOCK = 4 * _GROUP  # steps of a candidate in VMEM at a time
_UNROLL = 8
_MAX_WORDS = 32  # of 65,000 rows they are 8 MB, half of the VMEM that v5e's compiler grants


def distances(words: jax.Array, places: jax.Array, asked: jax.Array) -> jax.Array:
  """In how many bits each step's row differs from its candidate; the same on every platform.

  Args:
    words: u32[U, W]: fingerprints of the rows.
    places: i32[B, L], none below 0: of each step its row; U or more reads as a row of zeros.
    asked: u32[B, W]: fingerprints of the candidates.

  Returns:
    i32[B, L].

  >>> rows, asked = jnp.array([[5], [2]], jnp.uint32), jnp.array([[7]], jnp.uint32)
  >>> distances(rows, jnp.array([[1, 0, 2]]), asked).tolist()
  [[2, 1, 3]]
  """
  chex.assert_rank([words, places, asked], 2)
  chex.assert_equal_shape_prefix([places, asked], 1)
  is_split = any(map(_is_split_by_xla, (words, places, asked)))
  is_empty = places.size == 0  # no candidates, or histories of length 0: no grid to run over
  if is_split or is_empty or not is_worth_a_kernel(*words.shape, *places.shape):
    return gather_and_count(words, places, asked)
  return jax.lax.platform_dependent(
    words, places, asked, tpu=count_and_look_up, default=gather_and_count
  )


def is_worth_a_kernel(num_rows: int, num_words: int, batch_size: int, length: int) -> bool:
  """Whether on a TPU the kernel takes fewer bundles of instructions than XLA's gather and sum.

  The figures are those of the compiler for v5e and v6e, and no measured times. XLA: 2.2 to 2.6
  bundles a step, whatever W and U are. The kernel, for 128 rows and 8 candidates: up to 4.1 a line
  of 128 steps, and up to W + 2 to count. All are rounded against it. So U is never above 65,000.
  """
  group, _ = _steps_at_a_time(length)
  lines = pl.cdiv(length, group) * group // _LANES
  times = pl.cdiv(num_rows + 1, _LANES) * pl.cdiv(batch_size, _SUBLANES)
  of_kernel, of_xla = times * (4 * lines + num_words + 4), 2 * batch_size * length
  return num_words <= _MAX_WORDS and of_kernel <= of_xla


def gather_and_count(words: jax.Array, places: jax.Array, asked: jax.Array) -> jax.Array:
  """``distances`` in XLA: the words of all steps, u32[B, L, W], and then the bits that differ."""
  of_steps = words.at[places].get(mode="fill", fill_value=0)
  return simhash.hamming(of_steps, asked[:, None])


def count_and_look_up(
  words: jax.Array, places: jax.Array, asked: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """``distances`` as a TPU kernel; ``interpret`` runs it anywhere, slowly."""
  num_rows, num_words = words.shape
  batch_size, length = places.shape
  chunks = pl.cdiv(num_rows + 1, _LANES)  # one row more, of zeros: for places out of range
  by_lane = jnp.pad(words.T, ((0, 0), (0, chunks * _LANES - num_rows)))
  group, block = _steps_at_a_time(length)
  steps = pl.BlockSpec((_SUBLANES, block), lambda i, j: (i, j))
  return pl.pallas_call(
    functools.partial(_kernel, group=group),
    out_shape=jax.ShapeDtypeStruct(
      places.shape, jnp.int32, manual_axis_type=jax.typeof(places).manual_axis_type
    ),
    grid=(pl.cdiv(batch_size, _SUBLANES), pl.cdiv(length, block)),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.VMEM),
      steps,
      pl.BlockSpec((_SUBLANES, num_words), lambda i, j: (i, 0)),
    ],
    out_specs=steps,
    scratch_shapes=[pltpu.VMEM((chunks, _SUBLANES, _LANES), jnp.int32)],
    # What is counted at a candidate's first block of steps is looked up by the later ones.
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    name="hamming_scan",
    interpret=interpret,
  )(by_lane, jnp.minimum(places, num_rows), asked)


def _steps_at_a_time(length: int) -> tuple[int, int]:
  """How many steps of a candidate are looked up together, and how many are in VMEM."""
  group = min(_GROUP, pl.cdiv(length, _LANES) * _LANES)
  return group, min(_BLOCK, pl.cdiv(length, group) * group)


def _is_split_by_xla(array: jax.Array) -> bool:
  """Whether the program is split over devices by XLA, which cannot split a kernel.

  In ``jax.shard_map``, where all axes are manual, it is not.
  """
  mesh = jax.typeof(array).sharding.mesh
  axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
  return any(size > 1 and kind != jax.sharding.AxisType.Manual for size, kind in axes)


def _kernel(
  words_ref: Any, places_ref: Any, asked_ref: Any, out_ref: Any, found_ref: Any, *, group: int
) -> None:
  """Of 8 candidates: distances to all rows, at their first block, then those of a block of steps.

  Args:
    words_ref: u32[W, 128 C].
    places_ref: i32[8, block].
    asked_ref: u32[8, W].
    out_ref: i32[8, block].
    found_ref: i32[C, 8, 128]: distances to all rows, kept from one block to the next.
    group: how many steps are looked up together.
  """
  chunks = found_ref.shape[0]
  zeros = jnp.zeros((_SUBLANES, _LANES), jnp.int32)

  @pl.when(pl.program_id(1) == 0)
  def _() -> None:
    asked = [
      jnp.broadcast_to(asked_ref[:, w : w + 1], zeros.shape) for w in range(words_ref.shape[0])
    ]

    def count(chunk: jax.Array, _: None) -> None:
      rows = pl.ds(pl.multiple_of(chunk * _LANES, _LANES), _LANES)
      differ = [words_ref[w : w + 1, rows] ^ word for w, word in enumerate(asked)]
      bits = [jax.lax.population_count(word).astype(jnp.int32) for word in differ]
      found_ref[chunk] = sum(bits, zeros)

    jax.lax.fori_loop(0, chunks, count, None, unroll=_UNROLL)

  def look_up(start: jax.Array, _: None) -> None:
    lines = [
      pl.ds(pl.multiple_of(start * group + i, _LANES), _LANES) for i in range(0, group, _LANES)
    ]
    places = [places_ref[:, line] for line in lines]
    lane_of = [place & (_LANES - 1) for place in places]
    chunk_of = [place >> (_LANES.bit_length() - 1) for place in places]

    def look(chunk: jax.Array, picked: list[jax.Array]) -> list[jax.Array]:
      here = found_ref[chunk]
      read = functools.partial(jnp.take_along_axis, here, axis=1, mode="promise_in_bounds")
      return [
        jnp.where(chunk_of[i] == chunk, read(lane_of[i]), picked[i]) for i in range(len(lines))
      ]

    picked = jax.lax.fori_loop(0, chunks, look, [zeros] * len(lines), unroll=_UNROLL)
    for line, of_line in zip(lines, picked, strict=True):
      out_ref[:, line] = of_line

  jax.lax.fori_loop(0, out_ref.shape[1] // group, look_up, None)
