"""Configs are values: checked when made, changed by text, named when wrong."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jaxrec import config, data
from jaxrec.config import ConfigError, FeatureConfig, TableConfig, overrides, presets
from jaxrec.config import experiment as experiment_lib
from jaxrec.config.experiment import ExperimentConfig
from jaxrec.data import registry
from jaxrec.models import registry as model_registry
from jaxrec.runs.setup import optimizers
from jaxrec.training import state


def test_overrides_reach_every_field_and_keep_its_kind():
  changed = overrides.with_overrides(
    ExperimentConfig(),
    ["steps=7", "model.top_mlp=8,1", "optimizer.clip_norm=0.5", "data.data_dir=none",
     "model.self_interaction=true", "optimizer.learning_rate=1e-2"],
  )  # fmt: skip
  assert changed.steps == 7 and changed.model.top_mlp == (8, 1)
  assert changed.optimizer.clip_norm == 0.5 and changed.data.data_dir is None
  assert changed.model.self_interaction is True and changed.optimizer.learning_rate == 0.01
  assert ExperimentConfig().steps != 7


@pytest.mark.parametrize(
  ("text", "rules"),
  [
    (".*=row_wise(data,model)", (".*=row_wise(data,model)",)),
    ("(C1|C2)=table_wise, .*=row_wise(model)", ("(C1|C2)=table_wise", ".*=row_wise(model)")),
    ("[C1=replicated,[C].*=row_wise]", ("C1=replicated", "[C].*=row_wise")),
    ("auto", ("auto",)),
  ],
)
def test_commas_in_brackets_separate_nothing(text, rules):
  found = overrides.with_overrides(ExperimentConfig(), [f"sharding.rules={text}"])
  assert found.sharding.rules == rules


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("step=7", "no such field; did you mean 'steps'"),
    ("model.botom_mlp=1", "did you mean 'bottom_mlp'"),
    ("model=dlrm", "is a group; set one of model.name"),
    ("steps.x=1", "single value, not a group"),
    ("steps=many", "expected int, got 'many'"),
    ("model.self_interaction=maybe", "expected true or false, got 'maybe'"),
    ("steps", "expected key=value"),
    ("steps=0", "steps: must be at least 1, got 0"),
    ("steps=99999999999999", "steps: must be at most 2147483647"),
    ("batch_size=100000000000", "batch_size: must be at most"),
    ("optimizer.learning_rate=inf", "optimizer.learning_rate: must be a finite number"),
    ("optimizer.clip_norm=nan", "optimizer.clip_norm: must be a finite number >= 0, got nan"),
    ("accumulate_steps=3", "accumulate_steps: 3 does not divide batch_size 2048"),
    ("model.precision=fp8", "expected f32 or bf16, got 'fp8'"),
    ("compression.operation=bogus", "compression.operation: 'bogus'; Known: add, concat, mult"),
    ("data.combiner=maen", "data.combiner: 'maen'; did you mean 'mean'.* or null"),
  ],
)
def test_a_bad_override_is_named(override, message):
  with pytest.raises(ConfigError, match=message):
    overrides.with_overrides(ExperimentConfig(), [override])


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: TableConfig("t", 0, 4), r"table 't': vocab_size must lie in \[1, \d+\], got 0"),
    (lambda: TableConfig("t", 4, 0), "embedding_dim must be >= 1, got 0"),
    (lambda: TableConfig("t", 4, 4, dtype="int8"), "dtype must be one of"),
    (lambda: FeatureConfig("f", TableConfig("t", 4, 4), combiner="max"), "combiner must be one of"),
    (lambda: FeatureConfig("f", TableConfig("t", 4, 4), ids_per_bag=0), "ids_per_bag must be >= 1"),
    (lambda: config.Initializer("xavier"), "Initializer.kind"),
    (lambda: config.Initializer(scale=float("nan")), "Initializer.scale: expected a finite"),
    (lambda: TableConfig("t", 1e3, 4), "table 't': vocab_size must be an int, got 1000.0"),
    (lambda: TableConfig("t", 4, "4"), "table 't': embedding_dim must be an int, got '4'"),
    (
      lambda: FeatureConfig("f", TableConfig("t", 4, 4), ids_per_bag=2.0),
      "feature 'f': ids_per_bag must be an int, got 2.0",
    ),
    (
      lambda: config.check_features([
        FeatureConfig("f", TableConfig("t", 4, 4)), FeatureConfig("f", TableConfig("t", 4, 4)),
      ]),
      "feature 'f' is declared twice",
    ),
    (
      lambda: config.check_features([
        FeatureConfig("f", TableConfig("t", 4, 4)), FeatureConfig("g", TableConfig("t", 5, 4)),
      ]),
      "table 't' is declared twice, differently",
    ),
  ],
)  # fmt: skip
def test_a_bad_spec_is_named_where_it_is_made(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_the_combiner_none_can_be_chosen_and_null_is_the_data_sets_own():
  def combiner(text):
    changed = overrides.with_overrides(ExperimentConfig(), [f"data.combiner={text}"])
    return changed.data.combiner

  assert [combiner("none"), combiner("mean"), combiner("null")] == ["none", "mean", None]
  sequences = registry.load(experiment_lib.DataConfig(combiner="none"), embedding_dim=4)
  assert {feature.combiner for feature in sequences.spec.features} == {"none"}


def test_numpys_whole_numbers_are_ints():
  table = TableConfig("t", np.int64(9), np.int32(4))
  assert table.num_bytes == 9 * 4 * 4


def test_logistic_regression_is_not_silently_computed_in_another_precision():
  wanted = experiment_lib.ModelConfig(name="logistic_regression", precision="bf16")
  with pytest.raises(ConfigError, match="model.precision: logistic_regression .* f32 only"):
    model_registry.build(wanted)


def preset(name, *settings):
  experiment = overrides.with_overrides(presets.get(name), settings)
  dataset = registry.load(experiment.data, embedding_dim=experiment.model.embedding_dim)
  return experiment, dataset.spec, model_registry.build(experiment.model)


def dense_parameters(experiment, spec, model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *state.example_inputs(spec))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_mlperf_dcnv2_has_the_published_sizes():
  experiment, spec, model = preset("mlperf_dcnv2")
  assert sum(f.table.vocab_size for f in spec.features) == 204_184_588
  assert sum(f.ids_per_bag for f in spec.features) == 214
  assert round(sum(f.table.num_bytes for f in spec.features) / 2**30, 1) == 97.4
  assert dense_parameters(experiment, spec, model) == 16_044_545
  assert {f.combiner for f in spec.features} == {"sum"}
  assert experiment.batch_size == 65_536 and experiment.optimizer.eps == 1e-8
  assert experiment.optimizer.table == experiment.optimizer.dense == "adagrad"


@pytest.mark.parametrize(
  ("name", "dim", "widths", "batch_size", "rate"),
  [
    ("kaggle", 16, ((512, 256, 64, 16), (512, 256, 1)), 128, 0.1),
    ("terabyte", 64, ((512, 256, 64), (512, 512, 256, 1)), 2048, 0.1),
    ("mlperf_v1", 128, ((512, 256, 128), (1024, 1024, 512, 256, 1)), 2048, 1.0),
  ],
)
def test_presets_are_the_runs_of_the_note(name, dim, widths, batch_size, rate):
  experiment, spec, model = preset(name)
  assert {f.table.embedding_dim for f in spec.features} == {dim}
  assert all(f.is_single_valued and f.combiner == "sum" for f in spec.features)
  assert (model.bottom_mlp, model.top_mlp) == widths and spec.num_dense == 13
  assert (experiment.batch_size, experiment.optimizer.learning_rate) == (batch_size, rate)
  optimizers.build(experiment.optimizer)
  assert dense_parameters(experiment, spec, model) > 100_000
  json.dumps(experiment_lib.to_dict(experiment))


def test_rows_can_be_capped_for_a_small_machine():
  _, spec, _ = preset("mlperf_dcnv2", "data.max_rows_per_table=1000")
  assert max(f.table.vocab_size for f in spec.features) == 1000
  assert min(f.table.vocab_size for f in spec.features) == 4 - 1


def test_unknown_names_are_answered_with_the_nearest():
  with pytest.raises(ConfigError, match="did you mean 'kaggle'"):
    presets.get("kagle")
  with pytest.raises(ConfigError, match="did you mean 'synthetic'"):
    registry.load(experiment_lib.DataConfig(dataset="sythetic"), embedding_dim=4)
  with pytest.raises(ConfigError, match="did you mean 'dlrm'"):
    model_registry.build(experiment_lib.ModelConfig(name="dlmr"))
  with pytest.raises(ConfigError, match="did you mean 'adam'"):
    optimizers.build(experiment_lib.OptimizerConfig(table="adamm"))
  with pytest.raises(ConfigError, match="vocab_sizes: expected one value for each of the 26"):
    registry.load(experiment_lib.DataConfig(vocab_sizes=(3, 4)), embedding_dim=4)


@pytest.mark.parametrize(
  ("fields", "field"),
  [
    ({"data_dir": "clicks.csv"}, "data_dir"),
    ({"labels": ("click",)}, "labels"),
    ({"dataset": "adult", "labels": ("income",)}, "labels"),
    ({"dataset": "criteo", "schema": "schema.json"}, "schema"),
    ({"dataset": "movietweetings", "time": "ts"}, "time"),
    ({"crosses": ("a*b",)}, "crosses"),
  ],
)
def test_what_a_data_set_would_ignore_is_refused(fields, field):
  name = fields.get("dataset", "synthetic")
  with pytest.raises(ConfigError, match=f"data.{field}: dataset {name} does not read it.*=table"):
    registry.load(experiment_lib.DataConfig(**fields), embedding_dim=4)


def test_the_parts_of_wide_and_deep_start_from_its_config():
  whole = presets.for_dataset("adult", "wide_deep")
  assert whole.data.crosses and whole.model.name == "wide_deep"
  for part in ("wide", "deep"):
    assert presets.for_dataset("adult", part) == whole
  assert presets.for_dataset("adult", "dlrm") == presets.get("adult")
  with pytest.raises(ConfigError, match="ftrl.learning_rate: must be above 0"):
    experiment_lib.FtrlConfig(learning_rate=0.0)


def test_the_default_data_set_is_criteo_shaped():
  assert len(data.default_features()) == 26


def test_a_data_set_without_a_config_of_its_name_starts_from_the_defaults():
  assert presets.for_dataset(None) == presets.for_dataset("synthetic") == ExperimentConfig()
  assert presets.for_dataset("kaggle") == presets.get("kaggle")


def test_a_config_comes_back_from_json_as_it_was():
  changed = overrides.with_overrides(
    ExperimentConfig(),
    ["model.top_mlp=8,1", "data.vocab_sizes=3,4", "data.combiner=mean", "optimizer.clip_norm=2"],
  )
  for experiment in (ExperimentConfig(), changed, presets.get("mlperf_dcnv2")):
    text = json.dumps(experiment_lib.to_dict(experiment))
    assert experiment_lib.from_dict(json.loads(text)) == experiment
  assert experiment_lib.from_dict({}) == ExperimentConfig()  # younger fields
  assert isinstance(experiment_lib.from_dict({"optimizer": {"eps": 0}}).optimizer.eps, float)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"stepz": 3}, "stepz: no such field; did you mean 'steps'"),
    ({"model": {"top_mpl": [1]}}, "model.top_mpl: no such field; did you mean 'top_mlp'"),
    ({"steps": "many"}, "steps: expected int, got 'many'"),
    ({"steps": True}, "steps: expected int, got True"),
    ({"model": {"top_mlp": [1.5]}}, "model.top_mlp: expected int, got 1.5"),
    ({"model": {"top_mlp": 3}}, "model.top_mlp: expected tuple"),
    ({"model": 3}, "model: expected an object, got 3"),
    ([1], "config: expected an object"),
    ({"steps": 0}, "steps: must be at least 1"),
  ],
)
def test_a_config_that_no_run_wrote_is_refused_by_name(values, message):
  with pytest.raises(ConfigError, match=message):
    experiment_lib.from_dict(values)
