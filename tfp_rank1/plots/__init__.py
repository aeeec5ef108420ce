"""Pictures of predictive distributions (needs the `plots` extra)."""

from tfp_rank1.plots.calibration import calibration_curve, reliability_diagram
from tfp_rank1.plots.ood import ood_histogram, ood_roc
from tfp_rank1.plots.regression import predictive_band
from tfp_rank1.plots.rejection import risk_coverage, sparsification

__all__ = [
    "calibration_curve",
    "ood_histogram",
    "ood_roc",
    "predictive_band",
    "reliability_diagram",
    "risk_coverage",
    "sparsification",
]
