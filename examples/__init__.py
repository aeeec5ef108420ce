"""Runnable examples; start with `python -m examples.quickstart`."""
