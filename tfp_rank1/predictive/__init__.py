"""From samples of a model's outputs to answers, and to SavedModels that give answers."""

from tfp_rank1.predictive.answers import PosteriorPredictive, PredictiveMoments
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
    "PosteriorPredictive",
    "PredictiveMixture",
    "PredictiveMoments",
    "Samplers",
    "check_exportable",
    "evaluated",
    "export_predictive",
    "posterior_predictive",
    "sample_marginals",
    "sample_outputs",
]
