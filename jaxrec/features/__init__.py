"""What a model reads: batches, ids and the plan of rows they touch."""

from jaxrec.features.batch import Batch, BatchSpec, RowPlan, join_parts, stack_batches
from jaxrec.features.hashing import hash_ids, split_words
from jaxrec.features.id_bags import PAD_ID, IdBags
from jaxrec.features.row_plan import plan_rows
from jaxrec.features.stacks import Stack, TablePlan, plan_tables
from jaxrec.features.validate import BadExampleError, check_batch

__all__ = [
  "PAD_ID",
  "BadExampleError",
  "Batch",
  "BatchSpec",
  "IdBags",
  "RowPlan",
  "Stack",
  "TablePlan",
  "check_batch",
  "hash_ids",
  "join_parts",
  "plan_rows",
  "plan_tables",
  "split_words",
  "stack_batches",
]
