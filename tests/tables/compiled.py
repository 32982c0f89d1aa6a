"""Training steps compiled from shapes alone, for the device at hand or for one that is not there.

``compile_elsewhere`` does it in a process of its own, since compilers for absent devices want
environment variables of theirs, and the tests' eight devices are none of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import aot, models, sharding, tables, training
from jaxrec.analysis import topologies
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, BatchSpec, IdBags, plan_tables
from tests import own_process, xla_flags

OPTIMIZERS = {
  "rowwise_adagrad": lambda: tables.rowwise_adagrad(0.05),
  "sgd": lambda: tables.lazily(optax.sgd(0.1)),
  "adam": lambda: tables.lazily(optax.adam(1e-3)),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step as one device has it.

  Attributes:
    table_bytes: its tables and moments.
    temp_bytes: what the step needs beside its arguments.
    aliased_bytes: of its outputs, those that lie where its arguments did.
    copies: instructions that only move numbers, and as many as a table has.
    num_loops: loops of the program.
  """

  table_bytes: int
  temp_bytes: int
  aliased_bytes: int
  copies: list[str]
  num_loops: int


@dataclasses.dataclass(frozen=True)
class Step:
  """Two tables that share a stack, a small model, and where it all lies.

  Attributes:
    vocab_size: rows of each table.
    dim: of both.
    optimizer: of ``OPTIMIZERS``.
    dtype: of the tables.
    batch_size: examples, on each device.
    platform: by which the layout is chosen.
    devices: to compile for; (): the one at hand; several: a mesh, the tables' rows spread over it.
  """

  vocab_size: int
  dim: int
  optimizer: str
  dtype: str = "float32"
  batch_size: int = 256
  platform: str = "cpu"
  devices: tuple = ()

  @property
  def features(self) -> tuple[FeatureConfig, ...]:
    kinds = [TableConfig(n, self.vocab_size, self.dim, dtype=self.dtype) for n in ("user", "item")]
    return tuple(FeatureConfig(table.name, table) for table in kinds)

  def compile(self) -> Compiled:
    program, state = self.program()
    memory, text = program.memory_analysis(), program.as_text()
    held, parts = (state.tables.values, state.row_state.rows), max(len(self.devices), 1)
    num_elements = 2 * self.vocab_size * self.dim // parts
    return Compiled(
      table_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held)) // parts,
      temp_bytes=memory.temp_size_in_bytes,
      aliased_bytes=memory.alias_size_in_bytes,
      copies=_moves(text, num_elements),
      num_loops=len(re.findall(r"[ )]while\(", text)),
    )

  def program(self, **options):
    """The compiled step, with ``training.make_step``'s options, and the shapes of its state."""
    model = models.DLRM(bottom_mlp=(self.dim,), top_mlp=(8, 1))
    tx = training.Optimizers(dense=optax.adam(1e-3), rows=OPTIMIZERS[self.optimizer]())
    place = self._spread if len(self.devices) > 1 else self._whole
    state, batch = place(functools.partial(self._state, model, tx))
    step = jax.jit(training.make_step(model, tx, **options), donate_argnums=0)
    return step.lower(state, batch).compile(xla_flags.as_shipped()), state

  def _whole(self, state_on):
    plan, batch = plan_tables(self.features), self._batch()
    state = state_on(tables.one_device(plan, self.platform))
    batch = batch.replace(rows=jax.eval_shape(lambda b: tables.row_plans(plan, b), batch))
    if self.devices:
      at = jax.sharding.SingleDeviceSharding(self.devices[0])
      place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
      state, batch = jax.tree.map(place, (state, batch))
    return state, batch

  def _spread(self, state_on):
    num = len(self.devices)
    mesh = jax.sharding.Mesh(
      np.array(self.devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    plan = sharding.make_plan(self.features, {"data": num}, platform=self.platform)
    where = sharding.Sharded(mesh, plan)
    batch = aot.batch_shapes(self.batch_size * num, self._spec, where)
    return sharding.placed(state_on(where), where), batch

  @property
  def _spec(self):
    return BatchSpec(self.features, num_dense=4)

  def _state(self, model, tx, where):
    init = functools.partial(training.init_state, model=model, spec=self._spec, tx=tx)
    return jax.eval_shape(lambda: init(jax.random.key(0), placement=where))

  def _batch(self):
    size = self.batch_size
    return jax.eval_shape(
      lambda: Batch(
        dense=jnp.zeros((size, 4)),
        ids={f.name: IdBags(jnp.zeros(size, jnp.int32)) for f in self.features},
        labels={"click": jnp.zeros(size)},
        weights=jnp.ones(size),
      )
    )


_MOVES = "copy|copy-start|transpose|reshape|pad|convert|bitcast-convert|concatenate|broadcast"


def _moves(text: str, num_elements: int) -> list[str]:
  found = re.findall(rf"= \(?(\w+)\[([\d,]+)\][^=]*? ({_MOVES})\(", text)
  return [
    f"{dtype}[{dims}] {kind}"
    for dtype, dims, kind in found
    if math.prod(map(int, dims.split(","))) >= num_elements
  ]


def compile_elsewhere(kind: str, topology: str, steps: list[Step]) -> list[Compiled]:
  """The steps for devices that need not be there."""
  given = (kind, topology, [dataclasses.asdict(step) for step in steps])
  return [Compiled(**found) for found in own_process.run("tests.tables.compiled", *given)]


def _main() -> None:
  kind, topology, steps = json.loads(sys.argv[1])
  if kind == "h100":
    topology = str(math.prod(map(int, topology.split("x"))))
  devices = tuple(topologies.devices(f"{kind}:{topology}"))
  steps = [Step(**{**step, "devices": devices}) for step in steps]
  print(json.dumps([dataclasses.asdict(step.compile()) for step in steps]))


if __name__ == "__main__":
  _main()
