"""How the posteriors of all layers follow from batches."""
