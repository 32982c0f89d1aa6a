"""Tables of text, for programs that print figures.

Read next: jaxrec/inspect.py.
"""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> list[str]:
  """Lines of fixed width, the first column to the left and the others to the right.

  >>> aligned([["table", "rows"], ["user", "12"]])
  ['table  rows', 'user     12']
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.rjust(width) if index else cell.ljust(width)
      for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
