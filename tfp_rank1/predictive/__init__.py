"""From samples of a model's outputs to answers, and to SavedModels that give answers."""

from tfp_rank1.predictive.answers import PosteriorPredictive, PredictiveMoments
from tfp_rank1.predictive.batches import labelled_batches
from tfp_rank1.predictive.conformal import Conformal
from tfp_rank1.predictive.conformalization import conformalized, joined_weights
from tfp_rank1.predictive.evaluation import evaluated
from tfp_rank1.predictive.export import check_exportable, export_predictive
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.predictive.sampling import (
    Samplers,
    posterior_predictive,
    sample_marginals,
    sample_outputs,
)

__all__ = [
    "Conformal",
    "PosteriorPredictive",
    "PredictiveMixture",
    "PredictiveMoments",
    "Samplers",
    "check_exportable",
    "conformalized",
    "evaluated",
    "export_predictive",
    "joined_weights",
    "labelled_batches",
    "posterior_predictive",
    "sample_marginals",
    "sample_outputs",
]
