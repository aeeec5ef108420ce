"""BayesianModel and its collaborators."""

from tfp_rank1.model.bayesian import BayesianModel

__all__ = ["BayesianModel"]
