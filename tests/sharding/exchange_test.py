"""Rounds of the exchange: what does not fit comes later, and nothing is lost or done twice."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import features as features_lib
from jaxrec import sharding, tables, training
from jaxrec.features import IdBags
from jaxrec.tables import unique
from tests import xla_flags
from tests.sharding import cases

SIZE, STEPS = 64, 4
INPUTS = cases.features("bags")
MESHES = {
  "8 row-wise": ("8", sharding.row_wise()),
  "grid": ("2x4", sharding.row_wise("model")),
  "rows and columns": ("2x4", sharding.row_wise("data").and_columns("model")),
}


def batches(kind):
  return [cases.examples(INPUTS, SIZE, seed, kind) for seed in range(STEPS)]


def to_one_shard(seed):
  """Every id that a device has is on shard 0 of 8, all of them different if there are as many."""
  found = cases.examples(INPUTS, SIZE, seed, "distinct")
  where = cases.placement(INPUTS, {"data": 8})
  ids = {}
  for feature in INPUTS:
    sharded = where.plan.of(where.plan.stacks[0].name)
    rows = np.arange(feature.table.vocab_size)
    there = rows[sharded.rows_of(feature.table, rows) < sharded.rows_per_shard]
    there = there if len(there) else rows  # a small table may have none
    ids[feature.name] = [
      [int(there[i % len(there)]) for i in bag] for bag in found.ids[feature.name]
    ]
  return dataclasses.replace(found, ids=ids)


ADVERSARIES = {
  "distinct": lambda: batches("distinct"),
  "equal": lambda: batches("equal"),
  "one shard": lambda: [to_one_shard(seed) for seed in range(STEPS)],
}


@functools.cache
def run(mesh, capacity, adversary, optimizer="adam", transform=None, micro=1):
  name, layout = MESHES[mesh]
  where = cases.placement(INPUTS, cases.MESHES[name], ((".*", layout),), capacity=capacity)
  tx = cases.optimizers(optimizer)
  found = [cases.split(one, INPUTS, where) for one in ADVERSARIES[adversary]()]
  if micro > 1:
    found = [features_lib.stack_batches(found[i : i + micro]) for i in range(0, STEPS, micro)]
  options = {} if transform is None else {"row_transform": TRANSFORMS[transform]}
  step = jax.jit(
    training.make_step(cases.Scorer(), tx, accumulate_steps=micro, **options), donate_argnums=0
  )
  state, extra = cases.fresh(INPUTS, tx, where), []
  for batch in found:
    state, seen = step(state, batch)
    extra.append(int(seen.num_extra_rounds))
  return cases.by_table(state), jax.device_get(state.params), extra, where


def least_rounds(where, found, capacity):
  """Rounds that the device that asks one shard for most needs."""
  most = 0
  for part in range(where.plan.num_devices):
    size = len(found.weights) // where.plan.num_devices
    batch = found.batch(INPUTS, slice(part * size, (part + 1) * size))
    for plan in features_lib.plan_rows(batch, where.plan).rows.values():
      (sharded,) = where.plan.sharded
      shards = plan.rows[: int(plan.num_rows)] // sharded.rows_per_shard
      most = max(most, np.bincount(shards, minlength=1).max(initial=0))
  return -(-int(most) // capacity)


@pytest.mark.parametrize(
  ("mesh", "adversary"),
  [
    ("8 row-wise", "one shard"),
    ("grid", "distinct"),
    pytest.param("8 row-wise", "distinct", marks=pytest.mark.nightly),
  ],
)
def test_a_batch_past_every_capacity_gives_the_same_bits_and_is_counted(mesh, adversary):
  ample = run(mesh, 10_000, adversary)
  assert ample[2] == [0] * STEPS
  capacity = 2 if adversary == "distinct" else 1
  tight = run(mesh, capacity, adversary)
  jax.tree.map(np.testing.assert_array_equal, tight[0], ample[0])
  jax.tree.map(np.testing.assert_array_equal, tight[1], ample[1])
  least = [least_rounds(tight[3], found, capacity) for found in ADVERSARIES[adversary]()]
  assert all(extra >= rounds - 1 > 0 for extra, rounds in zip(tight[2], least, strict=True))
  # A shard's rounds end when the last of its askers has been served, one row at a time at worst.
  (sharded,) = tight[3].plan.sharded
  assert max(tight[2]) <= sharded.rows_per_shard


def test_equal_ids_are_one_row_and_need_one_round():
  assert run("8 row-wise", 3, "equal")[2] == [0] * STEPS


def test_the_same_run_has_the_same_bits():
  first = run("8 row-wise", 2, "distinct")
  again = run.__wrapped__("8 row-wise", 2, "distinct")
  jax.tree.map(np.testing.assert_array_equal, first[:2], again[:2])


TRANSFORMS = {
  "scale": lambda g, now: tables.scale(g, 0.5),
  "l2": lambda g, now: tables.add_l2(g, now, 0.1),
  "freeze": lambda g, now: tables.freeze(g, now, ["item"]),
  "clip": lambda g, now: tables.clip_by_global_norm(g, 0.05),
  "all": lambda g, now: tables.clip_by_global_norm(
    tables.scale(tables.add_l2(tables.freeze(g, now, ["tag"]), now, 0.1), 2.0), 0.05
  ),
}


@pytest.mark.parametrize(
  "transform",
  [name if name == "all" else pytest.param(name, marks=pytest.mark.nightly) for name in TRANSFORMS],
)
def test_functions_of_row_gradients_reach_every_round(transform):
  mesh = "rows and columns"  # where a norm is of parts of rows
  ample = run(mesh, 10_000, "distinct", "sgd", transform)
  tight = run(mesh, 2, "distinct", "sgd", transform)
  assert min(tight[2]) > 0
  cases.check_close(tight[0], ample[0])
  if transform in ("scale", "l2", "freeze"):  # a norm over all rounds is summed in another order
    jax.tree.map(np.testing.assert_array_equal, tight[0], ample[0])
  plain = run(mesh, 10_000, "distinct", "sgd")
  assert any((plain[0][name] != ample[0][name]).any() for name in plain[0])
  # And they are the functions that one device has.
  tx, found = cases.optimizers("sgd"), ADVERSARIES["distinct"]()
  step = jax.jit(training.make_step(cases.Scorer(), tx, row_transform=TRANSFORMS[transform]))
  state = cases.fresh(INPUTS, tx)
  for one in found:
    state, _ = step(state, cases.split(one, INPUTS, None))
  cases.check_close(ample[0], cases.by_table(state))


MAY_READ = {  # what reads tables, or rounds twice
  "l2": TRANSFORMS["l2"],
  "clip after l2": lambda g, now: tables.clip_by_global_norm(tables.add_l2(g, now, 0.1), 0.05),
  "frozen": TRANSFORMS["freeze"],
}


@pytest.mark.parametrize(
  "transform",
  [
    name if name == "clip after l2" else pytest.param(name, marks=pytest.mark.nightly)
    for name in MAY_READ
  ],
)
def test_no_function_of_row_gradients_makes_a_second_table(transform):
  large = tuple(
    dataclasses.replace(f, table=dataclasses.replace(f.table, vocab_size=200_000)) for f in INPUTS
  )
  tx, batch = cases.optimizers("adam"), ADVERSARIES["distinct"]()[0]
  where = cases.placement(large, {"data": 8}, capacity=2)
  state = jax.eval_shape(lambda: cases.fresh(large, tx, where))
  step = training.make_step(cases.Scorer(), tx, row_transform=MAY_READ[transform])
  compiled = (
    jax.jit(step, donate_argnums=0)
    .lower(sharding.placed(state, where), cases.split(batch, large, where))
    .compile(xla_flags.as_shipped())
  )
  (array,) = state.tables.values.values()
  assert compiled.memory_analysis().temp_size_in_bytes < array.size * 4 / 8 / 2


def test_micro_batches_are_summed_before_they_travel():
  whole = run("8 row-wise", 10_000, "distinct", "adam", None, 2)
  tight = run("8 row-wise", 2, "distinct", "adam", None, 2)
  assert whole[2] == [0, 0] and min(tight[2]) > 0
  jax.tree.map(np.testing.assert_array_equal, tight[0], whole[0])
  tx, state = cases.optimizers("adam"), None
  step = jax.jit(training.make_step(cases.Scorer(), tx, accumulate_steps=2))
  state = cases.fresh(INPUTS, tx)
  found = [cases.split(one, INPUTS, None) for one in ADVERSARIES["distinct"]()]
  for i in range(0, STEPS, 2):
    state, _ = step(state, features_lib.stack_batches(found[i : i + 2]))
  cases.check_close(whole[0], cases.by_table(state))


def test_noise_is_drawn_once_a_row_and_differs_between_shards():
  drawn = {}

  def transform(g, now):
    return tables.add_noise(g, jax.random.key(3), stddev=1.0)

  tx = training.Optimizers(dense=optax.sgd(0.0), rows=tables.lazily(optax.sgd(1.0)))
  for capacity in (10_000, 2):
    where = cases.placement(INPUTS, {"data": 8}, capacity=capacity)
    step = jax.jit(training.make_step(cases.Scorer(), tx, row_transform=transform))
    before = cases.fresh(INPUTS, tx, where)
    after, seen = step(before, cases.split(ADVERSARIES["distinct"]()[0], INPUTS, where))
    moved = cases.by_table(after)["user/0"] - cases.by_table(before)["user/0"]
    drawn[capacity] = moved[np.abs(moved).max(axis=1) > 0]
  for rows in drawn.values():
    assert len(rows) > 50 and len(np.unique(rows[:, 0])) == len(rows)
    assert rows.std() == pytest.approx(1.0, abs=0.1)
  assert len(drawn[2]) == len(drawn[10_000])


@hypothesis.given(st.data())
def test_plans_made_in_jit_are_those_of_the_host(data):
  rows = data.draw(st.integers(1, 40))
  # Of few lengths: each compiles programs of its own.
  size = data.draw(st.sampled_from([1, 30]))
  ids = data.draw(st.lists(st.integers(-1, rows - 1), min_size=size, max_size=size))
  inputs = (cases.features()[0],)
  table = dataclasses.replace(inputs[0].table, vocab_size=rows)
  inputs = (dataclasses.replace(inputs[0], table=table),)
  where = cases.placement(inputs, {"data": data.draw(st.sampled_from([1, 2, 3, 8]))})
  batch = features_lib.Batch(
    dense=np.zeros((size, 3), np.float32),
    ids={"user": IdBags.single(np.array(ids, np.int32))},
    labels={"click": np.zeros(size, np.float32)},
    weights=np.ones(size, np.float32),
  )
  (host,) = features_lib.plan_rows(batch, where.plan).rows.values()
  (made,) = unique.row_plans(where.plan, batch).values()
  jax.tree.map(np.testing.assert_array_equal, made, host)
  num = int(host.num_rows)
  assert (np.diff(host.rows) > 0).all() and num == len({i for i in ids if i >= 0})
  (sharded,) = where.plan.sharded
  found = np.append(host.rows, -1)[np.minimum(host.inverse, len(host.rows))]
  expected = sharded.rows_of(table, np.array(ids, np.int32))
  np.testing.assert_array_equal(found, np.where(np.array(ids) < 0, -1, expected))


@hypothesis.given(
  st.sampled_from([1, 40]).flatmap(
    lambda size: st.lists(st.integers(-2, 12), min_size=size, max_size=size)
  ),
  st.integers(1, 12),
)
def test_sorted_rows_list_each_row_once(ids, num_rows):
  plan = unique.sorted_rows(jnp.asarray(ids, jnp.int32), num_rows)
  valid = sorted({i for i in ids if 0 <= i < num_rows})
  assert int(plan.num_rows) == len(valid)
  np.testing.assert_array_equal(plan.rows[: len(valid)], valid)
  assert (np.diff(plan.rows) > 0).all() and (np.asarray(plan.rows)[len(valid) :] >= num_rows).all()
  for i, place in zip(ids, np.asarray(plan.inverse), strict=True):
    assert (int(plan.rows[place]) == i) if 0 <= i < num_rows else place == len(plan.rows)


def test_an_optimizer_of_whole_rows_is_refused_where_columns_are_shared():
  where = cases.placement(INPUTS, {"data": 8}, ((".*", sharding.column_wise()),))

  def by_row(updates, params=None):
    return jax.tree.map(lambda g: g / (1 + jnp.abs(g).sum(axis=1, keepdims=True)), updates)

  by_norm = training.Optimizers(dense=optax.sgd(0.1), rows=tables.lazily(optax.stateless(by_row)))
  with pytest.raises(ValueError, match="moves a column by the gradients of others"):
    cases.fresh(INPUTS, by_norm, where)
  own = tables.RowOptimizer(*tables.rowwise_adagrad(0.1)[:2])
  with pytest.raises(ValueError, match="this row optimizer needs whole rows; shard these tables"):
    cases.fresh(INPUTS, training.Optimizers(dense=optax.sgd(0.1), rows=own), where)


def test_a_batch_that_is_not_in_parts_is_refused():
  where = cases.placement(INPUTS, {"data": 8})
  tx = cases.optimizers("sgd")
  whole = cases.split(cases.examples(INPUTS, SIZE, 0), INPUTS, None, planned=False)
  with pytest.raises(ValueError, match=r"'item' has 65 row_splits for 64 examples, and 72 are"):
    cases.train(cases.fresh(INPUTS, tx, where), tx, [whole])
  short = cases.split(cases.examples(INPUTS, SIZE, 0), INPUTS, where)
  short = jax.tree.map(lambda leaf: leaf, short).replace(weights=short.weights[:60])
  with pytest.raises(ValueError, match="a batch of 60 examples does not divide among 8 devices"):
    cases.train(cases.fresh(INPUTS, tx, where), tx, [short])
  other = cases.placement(INPUTS, {"data": 8}, ((".*", sharding.table_wise()),))
  planned = cases.split(cases.examples(INPUTS, SIZE, 0), INPUTS, other)
  with pytest.raises(ValueError, match="row plan was made for other features or tables"):
    cases.train(cases.fresh(INPUTS, tx, where), tx, [planned])


def test_what_reads_tables_by_id_refuses_those_that_are_spread():
  found = cases.fresh(INPUTS, cases.optimizers("sgd"), cases.placement(INPUTS, {"data": 8})).tables
  reads = {
    "table 'user'": lambda: found.table("user"),
    "table 'item'": lambda: tables.with_table(found, "item", jnp.zeros((31, 8))),
    "table_statistics": lambda: tables.table_statistics(found, jax.random.key(0)),
  }
  for what, read in reads.items():
    with pytest.raises(ValueError, match=f"{what}: the tables are spread over the devices"):
      read()
