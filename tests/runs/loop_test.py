"""The loop compiles once, runs at most two steps ahead, stops when asked and goes on from there."""

from __future__ import annotations

import collections
import io
import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import config, data, features, models, tables, training
from jaxrec.data import pipeline, registry
from jaxrec.runs import loop
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.divergence import check
from jaxrec.runs.process import interrupt
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import metrics
from tests.data import tiny_clicks
from tests.runs import run_helpers

# Trained in a second; logs at every third step, evaluates at every sixth.
LOGISTIC = ("model.name=logistic_regression", "eval_every=6")


class Watcher(terminal_lib.Terminal):
  """Calls ``on_log(step)`` at each line of training metrics, and keeps what is shown."""

  def __init__(self, on_log=lambda step: None):
    self.text = io.StringIO()
    super().__init__(self.text)
    self._on_log = on_log

  def training(self, step, steps, figures):
    super().training(step, steps, figures)
    self._on_log(step)


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    yield


@pytest.fixture(scope="module", autouse=True)
def cache():
  """Programs are compiled once for all tests here; to load one counts as compiling it."""
  with run_helpers.cached_programs():
    yield


@pytest.fixture(scope="module")
def left_alone(tiny, tmp_path_factory):
  """What a run leaves that nobody disturbs."""
  path = tmp_path_factory.mktemp("left_alone") / "run"
  run(path, *LOGISTIC)
  return run_helpers.final_bits(path)


@pytest.fixture(autouse=True)
def handlers():
  before = signal.getsignal(signal.SIGINT)
  yield
  signal.signal(signal.SIGINT, before)


def raise_at(step, number=signal.SIGINT):
  return Watcher(lambda now: signal.raise_signal(number) if now == step else None)


def run(path, *overrides, terminal=None):
  return loop.run(run_helpers.tiny_config(*overrides), str(path), terminal=terminal)


@pytest.fixture
def compilations():
  """Names of the programs compiled since the test began."""
  names = []

  def listen(event, duration, **found):
    if event == "/jax/core/compile/backend_compile_duration":
      names.append(found["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  jax.monitoring.unregister_event_duration_listener(listen)


def test_each_program_is_compiled_once_over_a_run_with_evaluations_and_checkpoints(
  tmp_path, compilations
):
  jax.clear_caches()  # another test of this process may have run a program of the same shapes
  warm = []
  watcher = Watcher(lambda step: warm.append(list(compilations)) if step == 12 else None)
  run(tmp_path / "run", "batch_size=24", terminal=watcher)  # a shape of no other test
  counts = collections.Counter(compilations)
  for name in ("step", "predict", "unpack", "merge"):
    assert counts[f"jit({name})"] == 1, counts
  # After one evaluation and two checkpoints nothing is ever compiled again, three evaluations on.
  assert len(warm) == 1 and compilations == warm[0]


def test_at_most_two_steps_are_in_flight(tmp_path, monkeypatch):
  most, waited = [], []

  class Waited:
    def __init__(self, array):
      self._array = array

    def block_until_ready(self):
      waited.append(self._array.block_until_ready())

  class Watched(collections.deque):
    def append(self, item):
      super().append(item)
      most.append(len(self))

    def popleft(self):
      return Waited(super().popleft())

  monkeypatch.setattr(loop, "collections", types.SimpleNamespace(deque=Watched))
  run(tmp_path / "run", *LOGISTIC)
  assert max(most) == 2 and len(most) == run_helpers.STEPS
  assert len(waited) == run_helpers.STEPS - 1


def test_a_finished_run_is_tested_again_when_the_test_is_another_one(tmp_path):
  path, shown = tmp_path / "run", Watcher()
  first = run(path, *LOGISTIC, "steps=12", "test_examples=64")
  assert run(path, *LOGISTIC, "steps=12", "test_examples=64", "data.num_workers=1") == first
  more = run(path, *LOGISTIC, "steps=12", "test_examples=0", terminal=shown)
  anew = run(tmp_path / "anew", *LOGISTIC, "steps=12", "test_examples=0")
  assert more["auc"] != first["auc"]
  assert more["best_step"] == first["best_step"]
  same = {"workdir": None, "examples_per_s": None}
  assert more | same == anew | same
  assert "done (trained before) · test auc" in shown.text.getvalue()
  with_baseline = run(path, *LOGISTIC, "steps=12", "test_examples=0", "baseline_steps=2")
  assert with_baseline["auc"] == more["auc"]
  details = json.loads((path / "result.json").read_text())
  assert details["logistic_regression"]["auc"] > 0
  metrics_lines = (path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["split"] for line in metrics_lines].count("test") == 1


def test_a_finished_run_is_tested_again_for_other_slices(tmp_path, monkeypatch):
  path, settings = tmp_path / "run", (*LOGISTIC, "steps=12")
  result = run(path, *settings)
  run(tmp_path / "anew", *settings, "slices=day")
  anew = json.loads((tmp_path / "anew" / "result.json").read_text())
  monkeypatch.setattr(run_lib, "compile_step", None)  # nothing could be trained
  shown = Watcher()
  same = {"examples_per_s": None}
  assert run(path, *settings, "slices=day", terminal=shown) | same == result | same
  details = json.loads((path / "result.json").read_text())
  assert details["slices"] == anew["slices"] and len(details["slices"]["day"]) == 7
  assert " Monday " in shown.text.getvalue()
  run(path, *settings)
  assert "slices" not in json.loads((path / "result.json").read_text())


def test_steps_that_are_already_past_are_refused_before_the_config_is_written(tmp_path):
  path = tmp_path / "run"
  run(path, *LOGISTIC, "steps=12")
  before = (path / "config.json").read_bytes()
  with pytest.raises(workdir_lib.WorkdirError, match="at step 12 already, past --steps=6"):
    run(path, *LOGISTIC, "steps=6")
  assert (path / "config.json").read_bytes() == before


def test_a_second_run_in_the_folder_of_one_under_way_is_refused(tmp_path):
  path, refused = tmp_path / "run", []

  def intrude(step):
    if step == 6:
      with pytest.raises(workdir_lib.WorkdirError, match="in use by another process") as error:
        run(path, *LOGISTIC)
      refused.append(error)

  run(path, *LOGISTIC, terminal=Watcher(intrude))
  assert len(refused) == 1
  steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
  assert steps.count(3) == 1


@pytest.mark.parametrize("step", [9, 12, 24])
def test_a_run_interrupted_at_a_log_an_evaluation_or_the_end_resumes_to_the_same_bits(
  left_alone, tmp_path, compilations, step
):
  disturbed = tmp_path / "run"
  with pytest.raises(interrupt.Interrupted, match=f"stopped by SIGTERM at step {step}"):
    run(disturbed, *LOGISTIC, terminal=raise_at(step, signal.SIGTERM))
  assert not (disturbed / "result.json").exists()
  assert dict(run_helpers.saved_bits(disturbed, step))["progress"]["examples"] == step * 64
  watcher = Watcher()
  compilations.clear()
  run(disturbed, *LOGISTIC, terminal=watcher)
  assert compilations.count("jit(step)") == (step < run_helpers.STEPS)
  assert f"resuming {disturbed} from step {step}" in watcher.text.getvalue()
  assert run_helpers.final_bits(disturbed) == left_alone


def test_a_torn_line_of_metrics_heals(left_alone, tmp_path):
  torn = tmp_path / "run"
  with pytest.raises(interrupt.Interrupted):
    run(torn, *LOGISTIC, terminal=raise_at(6))
  with (torn / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "split": "train", "loss": 0.1}\n{"step": 12, "spl')
  run(torn, *LOGISTIC)
  assert run_helpers.final_bits(torn) == left_alone


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
  result = run(tmp_path / "run", *LOGISTIC)
  before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
  monkeypatch.setattr(registry, "LOADERS", {})  # nothing could be trained
  assert run(tmp_path / "run", *LOGISTIC) == result
  assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_finished_run_goes_on_when_asked_for_more_steps_and_is_not_cut_to_fewer(tmp_path):
  run(tmp_path / "run", *LOGISTIC, "steps=8")
  watcher = Watcher()
  assert run(tmp_path / "run", *LOGISTIC, "steps=12", terminal=watcher)["steps"] == 12
  assert "from step 8" in watcher.text.getvalue()
  with pytest.raises(workdir_lib.WorkdirError, match="at step 12 already, past --steps=8"):
    run(tmp_path / "run", *LOGISTIC, "steps=8")


def test_a_config_that_cannot_run_leaves_no_folder(tmp_path):
  for override, message in {
    "data.dataset=tinny": "dataset: no data set 'tinny'; did you mean 'tiny'",
    "model.bottom_mlp=8,5": "bottom_mlp ends in 5, but no embedding is so wide: embedding_dim is 4",
    "model.top_mlp=8": r"model.top_mlp: must end in 1, the logit of a click, got \(8,\)",
    "optimizer.decay_steps=-4": "decay_steps must be >= 0, got -4",
  }.items():
    with pytest.raises(config.ConfigError, match=message):
      run(tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_tables_are_refused_when_they_do_not_fit_with_their_moments(tmp_path, monkeypatch):
  tables_bytes, row_bytes = (40 + 30 + 20) * 4 * 4, (40 + 30 + 20) * 4
  monkeypatch.setattr(run_lib, "device_bytes", lambda: tables_bytes + row_bytes)
  run(tmp_path / "small", "steps=1", "optimizer.table=rowwise_adagrad")  # one moment a row: it fits
  refused = r"the tables need 0.0 MiB and their moments 0.0 MiB, and this .*rowwise_adagrad"
  with pytest.raises(config.ConfigError, match=refused):
    run(tmp_path / "run", "steps=1", "optimizer.table=adam")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "override",
  [
    "seed=-1", "seed=4294967296", "checkpoint_every=-1", "eval_examples=-1", "test_examples=-1",
    "baseline_steps=-1", "data.num_workers=-1", "data.prefetch_depth=1",
    "data.max_rows_per_table=0", "model.bottom_mlp=0,4", "model.top_mlp=-8,1",
    "model.cross_layers=0", "model.cross_rank=0", "optimizer.learning_rate=-1",
    "optimizer.learning_rate=nan", "optimizer.table_learning_rate=-1", "optimizer.eps=-1",
    "optimizer.clip_norm=0",
  ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(tmp_path, override):
  name, value = override.split("=")
  with pytest.raises(config.ConfigError, match=rf"{name}: must be .*got \(?{value[:2]}"):
    run(tmp_path / "run", override)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log_every", [3, 1000])
def test_a_diverging_run_stops_before_it_saves_or_logs_what_is_no_number(tmp_path, log_every):
  overrides = ("optimizer.dense=sgd", "optimizer.learning_rate=3e38", f"log_every={log_every}")
  with pytest.raises(check.DivergedError) as stopped:
    run(tmp_path / "run", *LOGISTIC, *overrides)
  message = str(stopped.value)
  assert "training diverged at step" in message and "optimizer.learning_rate" in message
  assert run_helpers.committed(tmp_path / "run") == []
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_parameters_that_are_no_numbers_are_divergence_though_the_loss_is_one():
  check.check(jnp.float32(0.5), {"w": jnp.ones(3)}, 7)
  for value in (jnp.inf, jnp.nan):
    with pytest.raises(check.DivergedError, match=r"by step 7 \(summed loss 0.5\)"):
      check.check(jnp.float32(0.5), {"w": jnp.ones(3).at[1].set(value), "b": jnp.ones(2)}, 7)


def test_logits_that_are_no_numbers_are_named_as_divergence_and_bad_examples_are_not():
  diverged = pytest.raises(check.DivergedError, match=r"by step 8 \(metrics: .* NaN score")
  with diverged, check.noticed_at(8):
    metrics.ScoreCounts.from_batch([np.nan], [1.0], [1.0])
  with pytest.raises(features.BadExampleError), check.noticed_at(8):
    raise features.BadExampleError("label 'click'")


def test_an_error_in_the_data_leaves_whole_checkpoints_to_go_on_from(left_alone, tmp_path):
  with pytest.raises(features.BadExampleError, match=r"dense column 1 \('price'\): nan in example"):
    run(tmp_path / "run", *LOGISTIC, "data.data_dir=dense_nan:857")
  assert run_helpers.committed(tmp_path / "run") == [6, 10]  # the example is of step 11
  assert not run_helpers.unfinished(tmp_path / "run")
  run(tmp_path / "run", *LOGISTIC)  # data_dir may change: the data has been repaired
  assert run_helpers.final_bits(tmp_path / "run") == left_alone


@pytest.mark.parametrize("kind", ["list", "generator", "prefetched"])
def test_any_list_or_generator_of_batches_trains(kind):
  source = tiny_clicks.TinyClicks(seed=0, embedding_dim=1)
  bare = [source.read(np.arange(start, start + 8)) for start in range(0, 40, 8)]
  planned = [
    features.plan_rows(batch, features.plan_tables(source.spec.features)) for batch in bare
  ]
  ways = {"list": bare, "generator": (b for b in planned), "prefetched": data.prefetch(iter(bare))}
  assert trained(source, ways[kind]) == pytest.approx(trained(source, planned), rel=1e-6)


def trained(source, batches):
  model = models.LogisticRegression()
  tx = training.Optimizers(dense=optax.sgd(0.1), rows=tables.rowwise_adagrad(0.1))
  state = training.init_state(jax.random.key(0), model, source.spec, tx=tx)
  step = jax.jit(training.make_step(model, tx), donate_argnums=0)
  losses = []
  for batch in batches:
    state, seen = step(state, batch)
    losses.append(float(seen.loss_sum))
  assert len(losses) == 5 and losses[0] != losses[-1]
  return losses


def test_an_example_of_weight_zero_touches_no_row():
  source = tiny_clicks.TinyClicks(seed=0, embedding_dim=1)
  batch = next(pipeline.batches(source, 8, num_steps=1, split="val"))
  padded = batch.replace(weights=np.where(np.arange(8) < 5, batch.weights, np.float32(0)))
  model = models.LogisticRegression()
  tx = training.Optimizers(dense=optax.sgd(0.1), rows=tables.lazily(optax.adam(0.1)))
  state = training.init_state(jax.random.key(0), model, source.spec, tx=tx)
  step = jax.jit(training.make_step(model, tx))
  real = jax.tree.map(lambda leaf: leaf, batch)
  for name, found in {"planned on the host": True, "planned in jit": False}.items():
    now = padded.replace(rows=None)
    if found:
      now = features.plan_rows(now, features.plan_tables(source.spec.features))
    after, _ = step(state, now)
    moved = np.asarray(after.tables.table("user") != state.tables.table("user"))[:, 0]
    assert set(np.flatnonzero(moved)) == set(real.ids["user"].values[:5].tolist()), name


def test_metrics_are_one_json_object_a_line_with_null_for_what_is_undefined(tmp_path):
  run(tmp_path / "run", *LOGISTIC, "eval_examples=1", "batch_size=1")  # one class: no AUC
  lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {line["split"] for line in lines} == {"train", "val", "test"}
  assert [line["step"] for line in lines if line["split"] == "train"] == list(range(3, 25, 3))
  assert {line["auc"] for line in lines if line["split"] == "val"} == {None}
