#!/usr/bin/env bash
# jax 0.10.2 with libtpu 0.0.42.1, compiling for a v5e chip that is not here.
#
# When a program does not fit a TPU's memory, the compiler's error speaks of "HLO temporaries". The
# number is the sum of temporaries and ARGUMENTS: a reduction of two arrays, 8.25 GiB each, which
# needs no temporaries at all (memory_analysis() of the half that fits says 0), is refused for
# "HLO temporaries (16.50G)". Who reads the message looks for activations to rematerialise, where
# the arrays that are passed in, such as embedding tables, are what fills the chip.
#
# Seen:
#   one array:  arguments 8.25 GiB, temporaries 0.00 GiB
#   two arrays: RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO
#               temporaries (16.50G) exceeds available HBM (15.75G).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 libtpu==0.0.42.1
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost
export ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu
cd "$folder"
venv/bin/python - <<'EOF'
import jax
import jax.numpy as jnp
from jax.experimental import topologies

topology = topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1]
)
chip = jax.sharding.SingleDeviceSharding(topology.devices[0])
rows = int(8.25 * 2**30) // (128 * 4)
array = jax.ShapeDtypeStruct((rows, 128), jnp.float32, sharding=chip)

memory = jax.jit(jnp.sum).lower(array).compile().memory_analysis()
arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
print(f"one array:  arguments {arguments / 2**30:.2f} GiB, temporaries {temporaries / 2**30:.2f} GiB")
assert (arguments, temporaries) == (rows * 128 * 4, 0)

try:
  jax.jit(lambda a, b: a.sum() + b.sum()).lower(array, array).compile()
except jax.errors.JaxRuntimeError as error:
  message = str(error).splitlines()[0]
else:
  raise SystemExit("two arrays of 8.25 GiB fit a chip of 15.75 GiB")
print("two arrays:", message)
assert "HLO temporaries (16.50G) exceeds available HBM (15.75G)" in message
EOF
