"""A run that diverges says where: the layer or table and the step that an eager check finds.

The check below is written out by hand: it keeps every state, computes each step one operation at a
time, and looks at each result as it comes.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import layers, tables
from jaxrec.data import registry
from jaxrec.inputs import table_plan
from jaxrec.runs import loop
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.divergence import check, first_nonfinite
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import losses
from jaxrec.training import state as state_lib
from tests.data import tiny_clicks
from tests.runs import run_helpers

STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    yield


@functools.cache
def examiner(accumulate_steps):
  """Programs for all tests of a shape: SGD whose rates are part of the state."""
  config = run_helpers.tiny_config(f"accumulate_steps={accumulate_steps}", "batch_size=16")
  run = run_lib.build(config, workdir_lib.Workdir("unused"), terminal_lib.silent())
  sgd = optax.inject_hyperparams(optax.sgd)(0.1)
  tx = state_lib.Optimizers(dense=sgd, rows=tables.lazily(sgd))
  return first_nonfinite.Examiner(dataclasses.replace(run, tx=tx))


@functools.cache
def host_state(found_by):
  return jax.tree.map(np.asarray, found_by.run.initial_state().replace(rng=None))


def initial_state(found_by):
  """A copy that may be donated; to make it anew would compile again."""
  return jax.tree.map(jnp.array, host_state(found_by)).replace(rng=jax.random.key(0))


def with_rates(state, *, dense=0.1, rows=0.1):
  state.opt_state.hyperparams["learning_rate"] = jnp.float32(dense)
  globals_ = {**state.row_state.globals, "hyperparams.learning_rate": jnp.float32(rows)}
  return state.replace(row_state=state.row_state.replace(globals=globals_))


def both(found_by, change):
  """What the replay finds, and what the eager check does; they must agree."""
  start = change(initial_state(found_by))
  found = first_nonfinite.find(found_by, start, checkpoint.Progress(), STEPS)
  wanted = expected(found_by, change(initial_state(found_by)))
  assert found is not None and f"{wanted} is the first that is not finite" in str(found)
  return str(found)


def expected(found_by, current):
  """What the eager check finds: ``at step n[, micro-batch m]: what``."""
  parts = found_by.run.config.accumulate_steps
  for step, batch in enumerate(found_by.run.train_batches(0, STEPS), start=1):
    micro = [jax.tree.map(lambda x, k=k: x[k], batch) if parts > 1 else batch for k in range(parts)]
    total = sum(float(part.weights.sum()) for part in micro)
    if row := bad_row(current, micro):
      return f"at step {step}: {row}"
    for number, part in enumerate(micro, start=1):
      if found := first_bad_of(current, part, total):
        return f"at step {step}{f', micro-batch {number}' if parts > 1 else ''}: {found}"
    current = found_by.advance(current, batch)
    if found := bad_parameter(current.params["params"]) or bad_row(current, micro):
      return f"at step {step}: {found}"
  raise AssertionError("the eager check found nothing")


def first_bad_of(current, batch, total):
  """The first bad number of one micro-batch, computed by hand; None if there is none."""
  seen = []

  def look(what, array):
    if not np.isfinite(np.asarray(jax.lax.stop_gradient(array))).all():
      seen.append(what)

  def forward(params, embeddings, look):
    x = batch.dense
    for i in range(2):
      x = x @ params["bottom"][f"layer_{i}"]["kernel"] + params["bottom"][f"layer_{i}"]["bias"]
      look(f"the output of 'bottom/layer_{i}'", x)
      x = jax.nn.relu(x)
    pairs = layers.dot_interaction(jnp.stack([x, *embeddings.values()], axis=1))
    look("the output of 'interactions'", pairs)
    x = jnp.concatenate([x, pairs], axis=1)
    for i in range(2):
      x = x @ params["top"][f"layer_{i}"]["kernel"] + params["top"][f"layer_{i}"]["bias"]
      look(f"the output of 'top/layer_{i}'", x)
      x = jax.nn.relu(x) if i == 0 else x
    loss = losses.binary_cross_entropy_sum(x[:, 0], batch.labels["click"], batch.weights)
    look("the loss", loss)
    return loss / total

  plan = current.tables.plan
  plans = batch.rows
  rows = tables.read_rows(current.tables, {name: jnp.asarray(p.rows) for name, p in plans.items()})
  embeddings = tables.embed(plan, rows, plans, batch)
  for feature in plan.features:
    bags = batch.ids[feature.name].to_lists()
    for example, bag in enumerate(bags):
      if not np.isfinite(embeddings[feature.name][example]).all():
        return f"the embedding of feature '{feature.name}' (table '{feature.table.name}'{ids(bag)})"
  params = current.params["params"]
  forward(params, embeddings, look)
  if seen:
    return seen[0]
  grads, row_grads = jax.grad(lambda p, e: forward(p, e, lambda *_: None), (0, 1))(
    params, embeddings
  )
  for block in ("top", "bottom"):
    for layer in ("layer_1", "layer_0"):
      for name, grad in sorted(grads[block][layer].items()):
        if not np.isfinite(grad).all():
          return f"the gradient of '{block}/{layer}/{name}'"
  for feature in plan.features:
    is_bad = ~np.isfinite(row_grads[feature.name]).all(axis=1)
    if is_bad.any():
      bag = batch.ids[feature.name].to_lists()[int(is_bad.argmax())]
      return f"the gradient of table '{feature.table.name}' (feature '{feature.name}'{ids(bag)})"
  return None


def ids(bag):
  return f", id {bag[0]}" if len(bag) == 1 else f", ids {bag}" if bag else ""


def bad_parameter(params):
  for block in ("bottom", "top"):
    for layer in ("layer_0", "layer_1"):
      for name, value in sorted(params[block][layer].items()):
        if not np.isfinite(value).all():
          return f"parameter '{block}/{layer}/{name}'"
  return None


def bad_row(current, parts):
  """The first bad row in the order in which the batch's micro-batches name them."""
  for part in parts:
    for feature in current.tables.plan.features:
      table = np.asarray(current.tables.table(feature.table.name))
      for bag in part.ids[feature.name].to_lists():
        for i in bag:
          if not np.isfinite(table[i]).all():
            return f"row {i} of table '{feature.table.name}' (feature '{feature.name}')"
  return None


def with_parameter(block, layer, name, value):
  """Sets all of a parameter."""

  def change(state):
    leaf = state.params["params"][block][layer][name]
    state.params["params"][block][layer][name] = jnp.full_like(leaf, value)
    return state

  return change


def late_item(run, first_step):
  """An item and the step that first meets it, not before ``first_step`` nor right after a third."""
  seen = set()
  for step, batch in enumerate(run.train_batches(0, 24), start=1):
    items = set(np.asarray(batch.ids["item"].values).ravel().tolist())
    if step >= first_step and step % 3 != 1 and items - seen:
      return min(items - seen), step
    seen |= items
  raise AssertionError("every item was met early")


def with_rows(values):
  """Sets rows of tables: {table: {id, or None for all: value}}."""

  def change(state):
    found = state.tables
    for name, new in values.items():
      rows = found.table(name).astype(jnp.float32)
      for i, value in new.items():
        rows = rows.at[slice(None) if i is None else i].set(value)
      found = tables.with_table(found, name, rows)
    return state.replace(tables=found)

  return change


def with_bias(value):
  """The last layer's output is ``value``, whatever it reads."""

  def change(state):
    state = with_parameter("top", "layer_1", "kernel", 0)(state)
    state.params["params"]["top"]["layer_1"]["bias"] = jnp.full((1,), value)
    return state

  return change


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("layer", ["bottom/layer_0", "bottom/layer_1", "top/layer_0"])
def test_a_layer_whose_output_overflows_is_named(layer, accumulate_steps):
  found = both(examiner(accumulate_steps), with_parameter(*layer.split("/"), "kernel", 3e38))
  part = ", micro-batch 1" if accumulate_steps > 1 else ""
  assert f"at step 1{part}: the output of '{layer}'" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_logits_that_are_numbers_and_whose_loss_is_none_are_the_losss_fault(accumulate_steps):
  found = both(examiner(accumulate_steps), with_bias(3e38))
  assert ": the loss is the first that is not finite (inf)" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_row_that_overflows_is_named_by_the_layer_and_the_micro_batch_it_breaks(accumulate_steps):
  item, step = late_item(examiner(1).run, 3)  # there are good steps before it
  found = both(examiner(accumulate_steps), with_rows({"item": {item: 3.4e38}}))
  part = ", micro-batch " if accumulate_steps > 1 else ": "
  assert f"at step {step}{part}" in found and ": the output of '" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_row_that_is_no_number_is_named_when_it_is_first_read(accumulate_steps):
  item, step = late_item(examiner(1).run, 3)
  found = both(examiner(accumulate_steps), with_rows({"item": {item: jnp.nan}}))
  assert f"at step {step}: row {item} of table 'item' (feature 'item') is the first" in found
  assert "when the step read it" in found


def test_a_bag_whose_sum_overflows_is_named_by_its_feature():
  # The mean of weights of 1/2 of three rows: their sum is too large before it is divided.
  found = both(examiner(1), with_rows({"tag": {None: 3.2e38}}))
  assert "the embedding of feature 'tags' (table 'tag', ids [" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_gradient_that_overflows_alone_is_named_by_its_table(accumulate_steps):
  # All products are 0, as all factors but the items are; a user's gradient is an item's row.
  def change(state):
    state = with_parameter("bottom", "layer_1", "kernel", 0)(state)
    state = with_parameter("bottom", "layer_1", "bias", 0)(state)
    state = with_parameter("top", "layer_0", "kernel", 1e4)(state)
    rows = {"user": {None: 0}, "tag": {None: 0}, "item": {None: 1e38}}
    return with_rows(rows)(state)

  found = both(examiner(accumulate_steps), change)
  assert ": the gradient of table 'user' (feature 'user', id " in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_an_optimizer_that_overflows_is_named_by_its_parameter_or_table(accumulate_steps):
  def steep(state):  # gradients well above 1, and everything finite
    return with_parameter("top", "layer_1", "kernel", 1e3)(state)

  found = both(examiner(accumulate_steps), lambda state: with_rates(steep(state), dense=3e38))
  assert "at step 1: parameter '" in found and "the optimizer's update made it so" in found
  found = both(examiner(accumulate_steps), lambda state: with_rates(steep(state), rows=3e38))
  assert "at step 1: row " in found and "the optimizer's update made it so" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("rates", [{"dense": 1e12}, {"rows": 1e22}])
def test_rates_that_are_too_high_are_named_where_they_first_tell(rates, accumulate_steps):
  found = both(examiner(accumulate_steps), lambda state: with_rates(state, **rates))
  assert "at step 1:" not in found and "at step 1," not in found


def test_what_is_finite_has_no_culprit():
  found_by = examiner(1)
  assert first_nonfinite.find(found_by, initial_state(found_by), checkpoint.Progress(), 3) is None


def test_stacks_of_several_widths_are_told_apart():
  config = run_helpers.tiny_config(
    "compression.kind=mixed_dims", "compression.threshold=25", "compression.alpha=2"
  )
  run = run_lib.build(config, workdir_lib.Workdir("unused"), terminal_lib.silent())
  assert len(table_plan.plan_tables(run.spec.features).stacks) > 1
  found_by = first_nonfinite.Examiner(run)
  batch = next(iter(run.train_batches(0, 1)))
  for name, table in [("user", "user"), ("item", "item"), ("tags", "tag")]:
    bags = batch.ids[name].to_lists()
    number = next(bag[0] for bag in bags if bag)
    start = with_rows({table: {number: jnp.inf}})(initial_state(found_by))
    found = str(first_nonfinite.find(found_by, start, checkpoint.Progress(), 1))
    assert f"at step 1: row {number} of table '{table}' (feature '{name}') is the first" in found


LOGISTIC = (
  "model.name=logistic_regression", "log_every=12", "eval_every=1000", "batch_size=16",
  "optimizer.dense=sgd",
)  # fmt: skip


def diverged(path, *overrides, terminal=None):
  """The message of a whole run that diverges."""
  with pytest.raises(check.DivergedError) as stopped:
    loop.run(run_helpers.tiny_config(*LOGISTIC, *overrides), str(path), terminal=terminal)
  assert check.ADVICE in str(stopped.value)
  return str(stopped.value)


def test_a_run_is_replayed_from_its_checkpoint_and_nothing_of_it_is_saved(tmp_path, monkeypatch):
  starts, copies, initial_state = [], [], run_lib.Run.initial_state
  settings = ("batch_size=2", "checkpoint_every=3", "data.max_rows_per_table=39")
  config = run_helpers.tiny_config(*LOGISTIC, *settings)
  item, step = late_item(run_lib.build(config, workdir_lib.Workdir("unused"), None), 5)
  injected = with_rows({"item": {item: jnp.inf}})
  monkeypatch.setattr(run_lib.Run, "initial_state", lambda self: injected(initial_state(self)))
  find, look = first_nonfinite.find, first_nonfinite.Examiner.step

  def watched_find(examiner, start, reached, last_step):
    starts.append((reached.step, last_step))
    return find(examiner, start, reached, last_step)

  def watched_step(self, current, *args):
    found = look(self, current, *args)
    (values,) = current.tables.values.values()
    live = [a for a in jax.live_arrays() if a.shape == values.shape and not a.is_deleted()]
    copies.append(len(live))
    return found

  monkeypatch.setattr(first_nonfinite, "find", watched_find)
  monkeypatch.setattr(first_nonfinite.Examiner, "step", watched_step)
  found = diverged(tmp_path / "run", *settings)
  last = step - 1 - (step - 1) % 3
  assert starts == [(last, last + 3)] and last > 0
  assert f"at step {step}: row {item} of table 'item' (feature 'item') is the first" in found
  assert run_helpers.committed(tmp_path / "run") == [last]
  assert copies and max(copies) <= 2, copies


def test_a_run_on_a_mesh_is_replayed_on_one_device(tmp_path):
  found = [
    diverged(tmp_path / mesh, "optimizer.learning_rate=3e38", f"sharding.mesh={mesh}")
    for mesh in ("data:2", "none")
  ]
  assert found[0] == found[1]
  assert "training diverged at step" in found[0] and "is the first that is not finite" in found[0]


def test_a_replay_that_cannot_run_leaves_the_message_as_it_was(tmp_path, monkeypatch):
  def exhausted(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(first_nonfinite, "Examiner", exhausted)
  shown = io.StringIO()
  found = diverged(
    tmp_path / "run", "optimizer.learning_rate=3e38", terminal=terminal_lib.Terminal(shown)
  )
  assert found.startswith("training has diverged by step ")
  assert "the replay failed: JaxRuntimeError: RESOURCE_EXHAUSTED" in shown.getvalue()


def test_a_replay_that_finds_nothing_leaves_the_message_as_it_was(tmp_path, monkeypatch):
  def stop(*args, **kwargs):
    raise check.DivergedError(f"as it was. {check.ADVICE}")

  monkeypatch.setattr(check, "check", stop)
  assert diverged(tmp_path / "run", "log_every=2").startswith("as it was")
