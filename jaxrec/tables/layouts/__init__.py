"""Lays the rows of a stack out in memory."""
