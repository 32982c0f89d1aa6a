"""Examines programs and models: traffic, memory on chips that are absent, importance."""
