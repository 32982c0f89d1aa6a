"""What a model reads: batches, ids and the plan of rows they touch."""

from jaxrec.features.hashing import hash_ids, split_words
from jaxrec.inputs.batch import Batch, BatchSpec, RowPlan, join_parts, stack_batches
from jaxrec.inputs.batch_checks import BadExampleError, check_batch
from jaxrec.inputs.id_bags import PAD_ID, IdBags
from jaxrec.inputs.row_plan import plan_rows
from jaxrec.inputs.table_plan import Stack, TablePlan, plan_tables

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
