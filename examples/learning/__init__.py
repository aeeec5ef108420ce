"""Guides of learning that goes on: tasks one after another, and labels chosen by the model."""
