"""Writes what a run has found: metrics, curves, the line at the end."""
