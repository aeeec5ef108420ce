"""Callbacks for a BayesianModel."""

from tfp_rank1.callbacks.annealing import KLAnnealing
from tfp_rank1.callbacks.resume import Resume

__all__ = ["KLAnnealing", "Resume"]
