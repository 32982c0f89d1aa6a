"""A run that diverges says where: the layer or table and the step that an eager check finds.

The check below is written out by hand: it keeps every state, computes each step one operation at a
time, and looks at each result as it comes.
"""

from __future__ import annotations

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxrec import features, layers, tables
from jaxrec.data import registry
from jaxrec.training import diagnosis, divergence, loop, losses, progress, setup
from jaxrec.training import workdir as workdir_lib
from tests.data import tiny_clicks
from tests.training import run_helpers

SHORT = ("eval_every=1000", "checkpoint_every=0", "log_every=12", "steps=24")


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    run_helpers.cache_programs()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def inject(monkeypatch):
  """Makes runs begin with a changed state."""
  initial_state = setup.Run.initial_state

  def injecting(change):
    monkeypatch.setattr(setup.Run, "initial_state", lambda self: change(initial_state(self)))

  return injecting


def diverged(path, *overrides):
  """The message of a run that diverges."""
  with pytest.raises(divergence.DivergedError) as stopped:
    loop.run(run_helpers.tiny_config(*SHORT, *overrides), str(path))
  assert divergence.ADVICE in str(stopped.value)
  return str(stopped.value)


def expected(*overrides):
  """What the eager check finds: ``at step n[, micro-batch m]: what is the first``."""
  config = run_helpers.tiny_config(*SHORT, *overrides)
  run = setup.build(config, workdir_lib.Workdir("unused"), progress.silent())
  current, step_fn = run.initial_state(), jax.jit(run.step_fn())
  parts = config.accumulate_steps
  for step, batch in enumerate(run.train_batches(0, config.steps), start=1):
    micro = [jax.tree.map(lambda x, k=k: x[k], batch) if parts > 1 else batch for k in range(parts)]
    total = sum(float(part.weights.sum()) for part in micro)
    for number, part in enumerate(micro, start=1):
      found = first_bad_of(current, part, total)
      if found:
        return f"at step {step}{f', micro-batch {number}' if parts > 1 else ''}: {found}"
    current, _ = step_fn(current, batch)
    found = bad_parameter(current.params["params"]) or bad_row(current, micro)
    if found:
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

  if row := bad_row(current, [batch]):
    return row
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
  """The first bad row in the order in which the batch names them."""
  for feature in current.tables.plan.features:
    table = np.asarray(current.tables.table(feature.table.name))
    for part in parts:
      for bag in part.ids[feature.name].to_lists():
        for i in bag:
          if not np.isfinite(table[i]).all():
            return f"row {i} of table '{feature.table.name}' (feature '{feature.name}')"
  return None


def with_parameter(block, layer, name, factor):
  def change(state):
    params = jax.tree.map(lambda leaf: leaf, state.params)
    params["params"][block][layer][name] = params["params"][block][layer][name] * factor
    return state.replace(params=params)

  return change


def with_rows(values):
  """Sets rows of tables: {table: {id or slice: value}}."""

  def change(state):
    arrays = dict(state.tables.values)
    for stack in state.tables.plan.stacks:
      for table, offset in zip(stack.tables, stack.offsets, strict=True):
        for i, value in values.get(table.name, {}).items():
          rows = jnp.arange(table.vocab_size)[i] + offset
          arrays[stack.name] = arrays[stack.name].at[rows].set(value)
    return state.replace(tables=state.tables.replace(values=arrays))

  return change


@pytest.mark.parametrize("block", ["bottom", "top"])
@pytest.mark.parametrize("layer", ["layer_0", "layer_1"])
def test_a_layer_whose_output_overflows_is_named(tmp_path, inject, block, layer):
  inject(with_parameter(block, layer, "kernel", 1e38))
  found = diverged(tmp_path / "run")
  assert f"{expected()} is the first that is not finite" in found
  assert f"at step 1: the output of '{block}/{layer}'" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_row_that_overflows_later_is_named_by_the_layer_and_step_it_breaks(
  tmp_path, inject, accumulate_steps
):
  # Batches of two, so that item 7 is not met at once; checkpoints lie between.
  settings = (
    "batch_size=2", f"accumulate_steps={accumulate_steps}", "checkpoint_every=2",
    "optimizer.learning_rate=1e-4", "data.seed=4",
  )  # fmt: skip
  inject(with_rows({"item": {7: 3e38}}))
  found, wanted = diverged(tmp_path / "run", *settings), expected(*settings)
  assert f"{wanted} is the first that is not finite" in found
  assert "output of 'interactions'" in found and ("micro-batch" in found) == (accumulate_steps > 1)
  assert "at step 1:" not in found  # there was something to replay
  assert run_helpers.committed(tmp_path / "run")  # and a checkpoint to begin at


def test_a_row_that_is_no_number_is_named_when_it_is_first_read(tmp_path, inject):
  settings = ("batch_size=2", "data.seed=4")
  inject(with_rows({"item": {7: jnp.nan}}))
  found = diverged(tmp_path / "run", *settings)
  assert f"{expected(*settings)} is the first that is not finite (nan)" in found
  assert "row 7 of table 'item' (feature 'item')" in found and "when the step read it" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_gradient_that_overflows_alone_is_named_by_its_table(tmp_path, inject, accumulate_steps):
  # All products are 0 as all factors but the items are; a user's gradient is an item's row.
  def change(state):
    state = with_parameter("bottom", "layer_1", "kernel", 0)(state)
    state = with_parameter("bottom", "layer_1", "bias", 0)(state)
    state = with_parameter("top", "layer_0", "kernel", 1e3)(state)
    everything = slice(None)
    return with_rows({"user": {everything: 0}, "tag": {everything: 0}, "item": {everything: 1e38}})(
      state
    )

  inject(change)
  settings = (f"accumulate_steps={accumulate_steps}",)
  found = diverged(tmp_path / "run", *settings)
  assert f"{expected(*settings)} is the first that is not finite" in found
  assert ": the gradient of table 'user' (feature 'user', id " in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_an_optimizer_that_overflows_a_parameter_is_named(tmp_path, accumulate_steps):
  settings = (
    "optimizer.dense=rmsprop", "optimizer.learning_rate=3e38",
    f"accumulate_steps={accumulate_steps}",
  )  # fmt: skip
  found = diverged(tmp_path / "run", *settings)
  assert f"{expected(*settings)} is the first that is not finite" in found
  assert "at step 1: parameter 'bottom/layer_0/" in found and "the optimizer's update" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_an_optimizer_that_overflows_a_row_is_named(tmp_path, accumulate_steps):
  settings = ("optimizer.table_learning_rate=3e38", f"accumulate_steps={accumulate_steps}")
  found = diverged(tmp_path / "run", *settings)
  assert f"{expected(*settings)} is the first that is not finite" in found
  assert "at step 1: row " in found and "the optimizer's update" in found


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize(
  "rates", [("optimizer.dense=sgd", "optimizer.learning_rate=1e12"),
            ("optimizer.table=sgd", "optimizer.table_learning_rate=1e22")],
)  # fmt: skip
def test_rates_that_are_too_high_are_named_where_and_when_they_first_tell(
  tmp_path, rates, accumulate_steps
):
  settings = (*rates, f"accumulate_steps={accumulate_steps}")
  found = diverged(tmp_path / "run", *settings)
  assert f"{expected(*settings)} is the first that is not finite" in found
  assert "at step 1" not in found


def test_stacks_of_several_widths_are_told_apart(tmp_path, inject):
  settings = (
    "compression.kind=mixed_dims", "compression.threshold=25", "compression.alpha=2",
    "optimizer.table_learning_rate=3e38",
  )  # fmt: skip
  found = diverged(tmp_path / "run", *settings)
  config = run_helpers.tiny_config(*SHORT, *settings)
  run = setup.build(config, workdir_lib.Workdir("unused"), progress.silent())
  before = run.initial_state()
  assert len(before.tables.plan.stacks) > 1
  batch = next(iter(run.train_batches(0, 1)))
  after, _ = jax.jit(run.step_fn())(before, batch)
  for stack in after.tables.plan.stacks:  # in the order of the stacks
    names = {table.name for table in stack.tables}
    of_stack = [f for f in after.tables.plan.features if f.table.name in names]
    one_stack = types.SimpleNamespace(
      tables=types.SimpleNamespace(
        plan=types.SimpleNamespace(features=of_stack), table=after.tables.table
      )
    )
    if wanted := bad_row(one_stack, [batch]):
      break
  assert f"at step 1: {wanted} is the first" in found


def test_at_most_two_copies_of_the_tables_are_alive_in_a_replay(tmp_path, monkeypatch, inject):
  counts = []
  look = diagnosis.Examiner.step

  def counting(self, current, *args):
    (values,) = current.tables.values.values()
    found = look(self, current, *args)
    live = [a for a in jax.live_arrays() if a.shape == values.shape and not a.is_deleted()]
    counts.append(len(live))
    return found

  monkeypatch.setattr(diagnosis.Examiner, "step", counting)
  inject(with_rows({"item": {7: 3e38}}))
  settings = ("batch_size=2", "data.seed=4", "data.max_rows_per_table=39")
  diverged(tmp_path / "run", *settings)
  assert len(counts) > 1 and max(counts) <= 2, counts


def test_nothing_of_a_replay_is_saved(tmp_path):
  settings = ("checkpoint_every=1", "optimizer.dense=sgd", "optimizer.learning_rate=1e12")
  diverged(tmp_path / "run", *settings)
  (kept,) = run_helpers.committed(tmp_path / "run")
  values = [bits for _, bits in run_helpers.saved_bits(tmp_path / "run", kept)]
  for dtype, shape, data in (bits for bits in values if isinstance(bits, tuple)):
    if dtype == "float32":
      assert np.isfinite(np.frombuffer(data, dtype)).all(), shape


def test_a_replay_that_cannot_run_leaves_the_message_as_it_was(tmp_path, monkeypatch):
  def exhausted(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(diagnosis, "Examiner", exhausted)
  shown = io.StringIO()
  settings = run_helpers.tiny_config(*SHORT, "optimizer.learning_rate=3e38", "optimizer.dense=sgd")
  with pytest.raises(divergence.DivergedError, match="training has diverged by step 12 .*Lower"):
    loop.run(settings, str(tmp_path / "run"), terminal=progress.Terminal(shown))
  assert "the replay failed: JaxRuntimeError: RESOURCE_EXHAUSTED" in shown.getvalue()


def test_a_replay_that_finds_nothing_leaves_the_message_as_it_was(tmp_path, monkeypatch):
  def stop(loss_sum, params, step):
    raise divergence.DivergedError("as it was")

  monkeypatch.setattr(divergence, "check", stop)
  with pytest.raises(divergence.DivergedError, match="^as it was$"):
    loop.run(run_helpers.tiny_config(*SHORT, "log_every=2"), str(tmp_path / "run"))


def test_a_logit_too_large_for_the_sum_of_losses_is_the_losss_fault(tmp_path, inject):
  # Each logit is finite, their sum is not: the last bias alone, and labels against it.
  def change(state):
    state = with_parameter("top", "layer_1", "kernel", 0)(state)
    return with_parameter("top", "layer_1", "bias", 0)(state).replace(
      params=with_parameter("top", "layer_1", "bias", 0)(state).params
    )

  def biased(state):
    state = change(state)
    params = jax.tree.map(lambda leaf: leaf, state.params)
    params["params"]["top"]["layer_1"]["bias"] = jnp.full((1,), 3e38)
    return state.replace(params=params)

  inject(biased)
  found = diverged(tmp_path / "run")
  assert f"{expected()} is the first that is not finite (inf)" in found
  assert "at step 1: the loss is" in found


def test_features_stays_importable():
  assert features.BadExampleError
