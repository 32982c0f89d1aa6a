"""Stops a run that diverges, and finds where it began to."""
