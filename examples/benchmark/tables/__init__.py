"""Tables in the benchmark: sets of columns of all kinds, and estimators as methods."""
