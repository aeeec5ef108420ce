"""Nets whose outputs have positions: pixels, tokens and time steps."""
