"""Turns logs of events into examples whose history lies before them."""
