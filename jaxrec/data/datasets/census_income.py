"""UCI Census-Income (KDD): does a person earn more than 50,000 dollars a year?

99,762 people of the 1994 and 1995 surveys, 40 columns without a header, one positive in sixteen.
The split is by chance: 80 % of the rows train, the seed is the config's.

Source: Lane and Kohavi (2000), UCI Machine Learning Repository, CC BY 4.0; the file is its test
part.
Read next: jaxrec/data/prepared/from_table.py.
"""

from __future__ import annotations

from jaxrec.config import experiment
from jaxrec.data.prepared import from_table, prepared_table
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features.schema import Column, Schema

FILE = "census_income_kdd_test_99762.csv.gz"
_COLUMNS = (
  "age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour",
  "enrolled_in_education", "marital_status", "major_industry", "major_occupation", "race",
  "hispanic_origin", "sex", "union_member", "reason_for_unemployment", "employment_status",
  "capital_gains", "capital_losses", "dividends", "tax_filer_status", "previous_region",
  "previous_state", "household_status", "household_summary", "instance_weight",
  "migration_msa", "migration_region", "migration_within_region", "lived_here_a_year_ago",
  "migration_sunbelt", "persons_worked_for_employer", "family_members_under_18",
  "father_birth_country", "mother_birth_country", "self_birth_country", "citizenship",
  "own_business", "veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income",
)  # fmt: skip
_NUMERIC = (
  "age", "wage_per_hour", "capital_gains", "capital_losses", "dividends",
  "persons_worked_for_employer", "weeks_worked",
)  # fmt: skip
_LEFT_OUT = ("instance_weight", "income")  # a weight of the survey itself, and the answer


def schema(config: experiment.DataConfig) -> Schema:
  """All columns but the survey's weight."""
  columns = {
    name: Column("numeric", buckets=config.num_buckets)
    if name in _NUMERIC
    else Column("categorical", min_count=config.min_count)
    for name in _COLUMNS
    if name not in _LEFT_OUT
  }
  return Schema({"income": "50000+."}, columns)


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=census_income``: a random split by ``config.seed``."""
  reader = reader_lib.open_files(files.find(config, FILE), column_names=_COLUMNS, separator=",")
  return from_table.make(reader, schema(config), config, embedding_dim)
