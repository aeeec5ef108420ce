"""BayesianModel, and its objective, step, options, roles and replicas."""

from tfp_rank1.model.bayesian import BayesianModel

__all__ = ["BayesianModel"]
