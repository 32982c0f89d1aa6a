"""Keeps the processes of a run together, and talks to the operating system."""
