"""Runs a config in a folder: what train.py does.

Read next: jaxrec/runs/loop.py.
"""
