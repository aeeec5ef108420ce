"""Inference: from the batches of a fit to the posteriors of all layers."""
