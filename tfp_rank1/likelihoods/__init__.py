"""Likelihoods: from a model's raw outputs to the distribution of the target."""

from __future__ import annotations

from typing import Any

from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.likelihoods.bernoulli import Bernoulli
from tfp_rank1.likelihoods.categorical import Categorical
from tfp_rank1.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from tfp_rank1.likelihoods.laplace import Laplace
from tfp_rank1.likelihoods.log_normal import LogNormal
from tfp_rank1.likelihoods.negative_binomial import NegativeBinomial
from tfp_rank1.likelihoods.noise import ClosedFormNoise, ScaledLikelihood
from tfp_rank1.likelihoods.normal import Normal
from tfp_rank1.likelihoods.poisson import Poisson
from tfp_rank1.likelihoods.student_t import StudentT
from tfp_rank1.serialization import lookup

__all__ = [
    "ALL",
    "Bernoulli",
    "Categorical",
    "ClosedFormNoise",
    "HeteroscedasticNormal",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ScaledLikelihood",
    "StudentT",
    "get",
]

# The likelihoods that a string can name.
ALL: tuple[type[Likelihood], ...] = (
    Categorical,
    Bernoulli,
    Normal,
    HeteroscedasticNormal,
    LogNormal,
    StudentT,
    Laplace,
    Poisson,
    NegativeBinomial,
)


def get(identifier: Any) -> Likelihood:
    """A likelihood from an object, a class, a name such as `"categorical"`, or a config.

    Raises:
        ValueError: for an unknown name; the message lists the known names.
    """
    return lookup(identifier, Likelihood, ALL, "likelihood")
