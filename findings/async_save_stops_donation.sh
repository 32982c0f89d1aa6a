#!/usr/bin/env bash
# jax 0.10.2 with orbax-checkpoint 0.12.8, on a CPU.
#
# An asynchronous save returns as soon as the arrays may change, and a training step donates them. On
# a CPU Orbax writes from the arrays' own memory; JAX sees that it is viewed, and silently does not
# donate: as long as the save goes on, a step that "updates in place" copies all its tables, in a
# second piece of memory as large as they are, and no warning says so. The saved values are right.
#
# Seen, with one array of 512 MiB:
#   while it is saved: donated array deleted: False, saving still in progress: True
#   after it is saved: donated array deleted: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 orbax-checkpoint==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python -W error::UserWarning - <<'EOF'
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

step = jax.jit(lambda table: table + 1, donate_argnums=0)
rows = 2**29 // (4 * 64)
jax.block_until_ready(step(jnp.zeros((rows, 64))))  # compiled before anything is saved

manager = ocp.CheckpointManager(
  pathlib.Path("checkpoints").absolute(),
  options=ocp.CheckpointManagerOptions(enable_async_checkpointing=True),
)
table = jax.block_until_ready(jax.random.uniform(jax.random.key(0), (rows, 64)))
first_rows = np.array(table[:100])
manager.save(1, args=ocp.args.StandardSave({"table": table}))
moved = step(table)
is_saving, was_donated = manager.is_saving_in_progress(), table.is_deleted()
jax.block_until_ready(moved)
print(f"while it is saved: donated array deleted: {was_donated}, saving still in progress: {is_saving}")
manager.wait_until_finished()

fresh = jax.block_until_ready(jnp.full((rows, 64), 2.0))
jax.block_until_ready(step(fresh))
print(f"after it is saved: donated array deleted: {fresh.is_deleted()}")
saved = manager.restore(1, args=ocp.args.StandardRestore({"table": moved}))["table"]
assert (np.asarray(saved[:100]) == first_rows).all()
assert is_saving and not was_donated and fresh.is_deleted()
EOF
