"""Holds what a step reads: batches, bags of ids, and the plan of rows that they touch.

Read next: jaxrec/inputs/batch.py.
"""
