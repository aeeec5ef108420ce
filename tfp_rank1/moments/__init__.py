"""One pass through a net with means and variances, in place of many samples.

A layer's rule turns the mean and the variance of its inputs into those of its outputs. `register`
teaches the pass a layer of your own.
"""

# Imported for the rules that these modules register.
from tfp_rank1.moments import (  # noqa: F401
    arrangement,
    attention,
    cells,
    merging,
    normalization,
    operations,
    pooling,
    rank1,
    recurrent,
    wrappers,
)
from tfp_rank1.moments.activations import activated, mean_slope
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.nodes import pseudo_samples
from tfp_rank1.moments.outputs import layers_without_rule, output_moments, takes_one_pass
from tfp_rank1.moments.registry import propagate, register

__all__ = [
    "Moments",
    "activated",
    "layers_without_rule",
    "mean_slope",
    "output_moments",
    "propagate",
    "pseudo_samples",
    "register",
    "takes_one_pass",
]
