#!/usr/bin/env bash
# jax 0.10.2 (jaxlib 0.10.2), two processes on a CPU.
#
# Collectives between processes on a CPU are Gloo's, and Gloo says on standard output, not on standard
# error and not through any log that a flag silences, to whom each device is connected. A program
# whose standard output is its result (a line of JSON) is no longer readable when it runs as several
# processes. The lines cannot be filtered out by a pattern either: threads write them in pieces at
# the same time, so that a line may begin within another and be followed by an empty one.
#
# Seen:
#   process 0: 3 lines, 2 of Gloo's
#   process 1: 3 lines, 2 of Gloo's
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
cd "$folder"
cat > program.py <<'PROGRAM'
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

port, process_id = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, process_id)
mesh = jax.make_mesh((4,), ("data",))
spread = NamedSharding(mesh, PartitionSpec("data"))
ones = jax.jit(lambda: jnp.ones(8), out_shardings=spread)()
print("result", int(jax.jit(jnp.sum)(ones)))
PROGRAM
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
for process in 0 1; do
  timeout 120 venv/bin/python program.py "$port" "$process" > "$process.out" 2> "$process.err" &
done
wait
for process in 0 1; do
  grep -qx "result 8" "$process.out" || { echo "process $process did not finish"; exit 1; }
  echo "process $process: $(wc -l < "$process.out") lines, $(grep -c 'peer ranks' "$process.out") of Gloo's"
  grep -q "peer ranks" "$process.out" || { echo "changed: nothing on standard output"; exit 1; }
  ! grep -q "peer ranks" "$process.err" || { echo "changed: on standard error"; exit 1; }
done
