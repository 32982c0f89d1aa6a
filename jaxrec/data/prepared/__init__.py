"""Prepares record batches once: into arrays on disk that every later run reads."""
