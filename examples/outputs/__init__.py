"""Nets whose outputs have positions (pixels, tokens, time steps), and nets with several outputs."""
