"""Pictures of fits, posteriors and predictive distributions (needs the `plots` extra).

Colours and background suit light and dark pages; `plt.rcParams.update(tfp_rank1.plots.LOOK)` gives
figures of one's own the same look.
"""

from tfp_rank1.plots.calibration import calibration_curve, reliability_diagram
from tfp_rank1.plots.history import training_history
from tfp_rank1.plots.maps import uncertainty_map
from tfp_rank1.plots.ood import ood_histogram, ood_roc
from tfp_rank1.plots.posteriors import factor_posteriors
from tfp_rank1.plots.regression import predictive_band
from tfp_rank1.plots.rejection import risk_coverage, sparsification
from tfp_rank1.plots.style import BLUE, GRAY, LOOK, ORANGE, PALETTE

__all__ = [
    "BLUE",
    "GRAY",
    "LOOK",
    "ORANGE",
    "PALETTE",
    "calibration_curve",
    "factor_posteriors",
    "ood_histogram",
    "ood_roc",
    "predictive_band",
    "reliability_diagram",
    "risk_coverage",
    "sparsification",
    "training_history",
    "uncertainty_map",
]
