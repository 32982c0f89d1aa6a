"""Reads the data sets that are known by name, one file each."""
