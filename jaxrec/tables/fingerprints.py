"""Fingerprints kept beside the rows that they are of.

A search by bits (layers/lsh_attention.py) reads a row's fingerprint and not the row. Where many
rows are searched and few change, as in serving, hashing them for each request costs more than the
search. So the words may lie beside the table, and whoever writes a row, be it an optimizer or an
update from elsewhere, writes its words too: all of them go through ``device_table.write_rows``.

*Source*: ETA (Chen et al. 2021, arXiv 2108.04468, section 3.3) keeps them in the embedding table.
*Read next*: jaxrec/tables/device_table.py.
"""

from __future__ import annotations

import flax.struct
import jax

from jaxrec.layers import simhash


@flax.struct.dataclass
class Fingerprints:
  """The words of some stacks, and what they are made with.

  Attributes:
    words: by stack u32[V, W]: of row r the words are at r.
    planes: by stack f32[D, m], the hyperplanes of the model that searches.
    variant: of ``layers.fingerprints``; static.
  """

  words: dict[str, jax.Array]
  planes: dict[str, jax.Array]
  variant: str = flax.struct.field(pytree_node=False, default="inner_product")

  def of(self, stack: str, rows: jax.Array) -> jax.Array:
    """u32[U, W] of rows f32[U, D], as they are read from the stack."""
    return simhash.fingerprints(rows, self.planes[stack], variant=self.variant)
