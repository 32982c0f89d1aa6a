"""Reads files and frames into record batches, and names what is bad in them."""
