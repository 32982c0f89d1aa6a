#!/usr/bin/env bash
# jax 0.10.2 (numpy 2), on a CPU; jax 0.12.0.1 did the same.
#
# Indices out of range are fine where a fill value is given, but not if the axis is empty, so that
# all of them are: an empty table, a batch without a single id. Three ways to say the same read
# behave in three ways, and the write has no such limit.
#
# Seen, for x of shape (0, 3) and indices [0, 5]:
#   x.at[i].get(mode="fill", fill_value=7)         TypeError: Slice size at index 0 in gather op is
#                                                  out of range, must be within [0, 0 + 1), got 1.
#   jnp.take(x, i, axis=0, mode="fill")            IndexError: Cannot do a non-empty jnp.take() from
#                                                  an empty axis.
#   jnp.take_along_axis(x, ..., mode="fill",       (2, 3), of ZEROS: the fill value is ignored, while
#                       fill_value=7)              an axis of length 1 gives 7 for the same indices
#   x.at[i].set(1.0, mode="drop")                  (0, 3)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'EOF'
import jax.numpy as jnp
import numpy as np

x, i = jnp.zeros((0, 3)), jnp.array([0, 5])


def outcome(read):
  try:
    return np.asarray(read())
  except (TypeError, IndexError) as error:
    return f"{type(error).__name__}: {error}"


get = outcome(lambda: x.at[i].get(mode="fill", fill_value=7))
take = outcome(lambda: jnp.take(x, i, axis=0, mode="fill", fill_value=7))


def along(array):
  indices = jnp.full((2, 3), 5)
  return jnp.take_along_axis(array, indices, axis=0, mode="fill", fill_value=7)


of_none, of_one = outcome(lambda: along(x)), outcome(lambda: along(jnp.zeros((1, 3))))
drop = outcome(lambda: x.at[i].set(1.0, mode="drop"))
print(get, take, of_none, of_one, drop.shape, sep="\n")
assert get.startswith("TypeError: Slice size at index 0 in gather op is out of range")
assert take.startswith("IndexError: Cannot do a non-empty jnp.take() from an empty axis")
assert of_none.shape == of_one.shape == (2, 3)
assert (of_none == 0).all() and (of_one == 7).all()
assert drop.shape == (0, 3)
EOF
