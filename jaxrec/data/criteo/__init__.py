"""Criteo's click logs, Kaggle and Terabyte, from raw files to batches."""
