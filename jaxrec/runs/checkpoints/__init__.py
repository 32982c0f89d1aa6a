"""Saves the state of a run, and restores it on other devices and into other tables."""
