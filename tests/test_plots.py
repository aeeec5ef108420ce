"""The plots draw what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import tfp_rank1 as r1


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_classification_plots(digits, digits_model):
    x, y = digits[2][:100], digits[3][:100]
    inside = digits_model.posterior_predictive(x, 8, seed=0)
    outside = digits_model.posterior_predictive(np.flip(x, axis=1), 8, seed=0)
    ax = r1.plots.reliability_diagram(y, inside, label="net")
    metric = r1.metrics.ExpectedCalibrationError(10)
    metric.update_state(y, inside.outputs)
    assert ax.get_legend().get_texts()[0].get_text() == f"net (ECE {float(metric.result()):.3f})"
    ax = r1.plots.ood_roc(inside, outside, label="net")
    area = r1.metrics.OODAUROC()
    area.update_state(np.zeros(100), inside.outputs)
    area.update_state(np.ones(100), outside.outputs)
    text = ax.get_legend().get_texts()[0].get_text()
    assert float(text.split("AUROC ")[1].rstrip(")")) == pytest.approx(
        float(area.result()), abs=0.01
    )
    ax = r1.plots.ood_histogram(inside, outside)
    assert sum(patch.get_height() for patch in ax.patches) == pytest.approx(2.0)


def test_predictive_band(regression_model):
    x = np.linspace(-1, 1, 30, dtype="float32")[:, np.newaxis]
    p = regression_model.posterior_predictive(x, 16, seed=0)
    ax = r1.plots.predictive_band(x, p, data=(x, x))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.ravel(p.mean()))
    outer, inner = (c.get_paths()[0].vertices[:, 1] for c in ax.collections[:2])
    assert outer.max() - outer.min() > inner.max() - inner.min()
    top = np.max(np.ravel(p.mean()) + 2 * np.ravel(p.stddev()))
    assert outer.max() == pytest.approx(top, rel=1e-5)


def test_risk_coverage_and_sparsification(digits, digits_model, regression_model):
    x, y = digits[2][:100], digits[3][:100]
    p = digits_model.posterior_predictive(x, 8, seed=0)
    exact = r1.metrics.risk_coverage(p, y)
    ax = r1.plots.risk_coverage(y, p, label="net")
    assert r1.plots.risk_coverage(y, p, "mutual_information", "log_loss", ax, "other") is ax
    np.testing.assert_array_equal(ax.lines[0].get_data(), (exact.coverage, exact.risk))
    bottom, top = ax.get_ylim()
    assert bottom == 0.0 and top > max(line.get_ydata().max() for line in ax.lines)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[0] == f"net (AURC {exact.aurc:.3g})" and len(texts) == 2
    x = np.linspace(-1, 1, 60, dtype="float32")[:, np.newaxis]
    p = regression_model.posterior_predictive(x, 16, seed=0)
    exact = r1.metrics.sparsification(p, np.sin(3 * x))
    ax = r1.plots.sparsification(np.sin(3 * x), p)
    np.testing.assert_array_equal(ax.lines[0].get_data(), (exact.removed, exact.error))
    np.testing.assert_array_equal(ax.lines[1].get_data(), (exact.removed, exact.oracle))
    assert ax.get_legend().get_texts()[0].get_text() == f"(AUSE {exact.ause:.3f})"


def test_calibration_curve():
    """Twice too wide, right, and missing targets; the share is that of quantiles."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(1, 500, 1)).astype("float32")
    y = (means[0] + 0.5 * rng.normal(size=(500, 1))).astype("float32")
    y[::7] = np.nan
    wide = r1.PosteriorPredictive(means, r1.likelihoods.Normal(1.0))
    right = r1.PosteriorPredictive(means, r1.likelihoods.Normal(0.5))
    ax = r1.plots.calibration_curve(y, wide, num_levels=10, label="wide")
    assert r1.plots.calibration_curve(y, right, num_levels=10, ax=ax, label="right") is ax
    _, wide_line, right_line = ax.lines
    seen = ~np.isnan(y)
    for i in range(1, 10):
        expected = np.mean(y[seen] <= wide.quantile(i / 10)[seen])
        assert wide_line.get_ydata()[i] == pytest.approx(expected)
    assert np.abs(right_line.get_ydata() - right_line.get_xdata()).max() < 0.08
    low, high = wide_line.get_ydata()[[2, 8]]
    assert low == pytest.approx(stats.norm.cdf(2 * stats.norm.ppf(0.2)), abs=0.05)
    assert high == pytest.approx(stats.norm.cdf(2 * stats.norm.ppf(0.8)), abs=0.05)
    gap = np.abs(wide_line.get_ydata() - wide_line.get_xdata())
    area = ax.get_legend().get_texts()[0].get_text().split("area ")[1].rstrip(")")
    assert float(area) == pytest.approx(np.trapezoid(gap, dx=0.1), abs=6e-4)


def test_calibration_curve_of_counts():
    """Counts from the model itself are calibrated, although few quantiles exist."""
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.5, 3.0, (1, 4000, 1)).astype("float32")
    y = rng.poisson(rate[0])
    p = r1.PosteriorPredictive(np.log(rate), r1.likelihoods.Poisson())
    line = r1.plots.calibration_curve(y, p, num_levels=20).lines[1]
    assert np.abs(line.get_ydata() - line.get_xdata()).max() < 0.03
    level, low, high = 0.4, stats.poisson.cdf(y - 1, rate[0]), stats.poisson.cdf(y, rate[0])
    part = np.clip((level - low) / (high - low), 0, 1).mean()
    assert line.get_ydata()[8] == pytest.approx(part, abs=1e-4)
    with pytest.raises(ValueError, match=r"use `reliability_diagram`.* likelihood=Bernoulli"):
        r1.plots.calibration_curve([1.0], r1.PosteriorPredictive(
            np.zeros((1, 1, 1), "float32"), r1.likelihoods.Bernoulli()
        ))  # fmt: skip
