"""The plots draw what they say."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data, net
from scipy import stats

import bali_keras as bk
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


def test_a_predictive_band_takes_inputs_in_any_order_and_one_target():
    x = np.linspace(-1, 1, 30, dtype="float32")
    order = np.random.default_rng(0).permutation(30)
    draws = np.stack([x, x + 0.1])[..., None]
    p = r1.PosteriorPredictive(draws, r1.likelihoods.Normal(0.1))
    mixed = r1.PosteriorPredictive(draws[:, order], r1.likelihoods.Normal(0.1))
    a, b = r1.plots.predictive_band(x, p), r1.plots.predictive_band(x[order], mixed)
    for one, other in zip((*a.lines, *a.collections), (*b.lines, *b.collections), strict=True):
        paths = [c.get_path() if hasattr(c, "get_path") else c.get_paths()[0] for c in (one, other)]
        np.testing.assert_allclose(paths[0].vertices, paths[1].vertices)
    two = r1.PosteriorPredictive(np.zeros((2, 30, 2), "float32"), r1.likelihoods.Normal(0.1))
    classes = r1.PosteriorPredictive(np.zeros((2, 30, 3), "float32"), r1.likelihoods.Categorical())
    for inputs, answers in ((x, two), (x, classes), (x[:20], p), (np.stack([x, x], -1), p)):
        with pytest.raises(ValueError, match="one target over one input"):
            r1.plots.predictive_band(inputs, answers)


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
    assert ax.get_legend().get_texts()[0].get_text() == f"AUSE {exact.ause:.3f}"


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


# -- fits and posteriors --------------------------------------------------------------------------


def test_training_history():
    logs = {"nll": [2.0, 1.0, 0.5, 0.4], "val_nll": [1.5, 0.9], "kl": [0.3, 0.2, 0.1, 0.1]}
    ax = r1.plots.training_history(logs)
    train, validation = ax.lines
    np.testing.assert_array_equal(train.get_data(), ([1, 2, 3, 4], logs["nll"]))
    # Validated after every second epoch.
    np.testing.assert_array_equal(validation.get_data(), ([2, 4], logs["val_nll"]))
    (other,) = [a for a in ax.figure.axes if a is not ax]
    np.testing.assert_array_equal(other.lines[0].get_ydata(), logs["kl"])
    assert len(r1.plots.training_history({"nll": [1.0]}, ax=plt.subplots()[1]).lines) == 1
    with pytest.raises(ValueError, match=r"needs 'nll'.*Received: \{'loss': 1\}"):
        r1.plots.training_history({"loss": [1.0]})


def test_uncertainty_map():
    image, uncertainty = np.zeros((4, 5, 1)), np.arange(20.0).reshape(4, 5)
    ax = r1.plots.uncertainty_map(image, uncertainty, highest=10.0)
    _, overlay = ax.images
    np.testing.assert_array_equal(overlay.get_array(), uncertainty)
    np.testing.assert_allclose(overlay.get_alpha(), np.minimum(uncertainty / 10.0, 1.0))
    nothing = r1.plots.uncertainty_map(np.zeros((4, 5, 3)), np.zeros((4, 5)))
    assert not np.any(nothing.images[1].get_alpha())
    with pytest.raises(ValueError, match=r"shapes \(4, 5, 1\) and \(5, 4\)"):
        r1.plots.uncertainty_map(image, uncertainty.T)
    with pytest.raises(ValueError, match="at least 0"):
        r1.plots.uncertainty_map(image, -uncertainty)


def test_factor_posteriors():
    layer = r1.layers.DenseRank1(3, ensemble_size=2, posterior="normal", prior="normal")
    layer(np.zeros((4, 5), "float32"))
    ax = r1.plots.factor_posteriors(layer)
    for line, posterior in zip(
        [line for line in ax.lines if line.get_label() in "rs"],
        (layer.r_posterior, layer.s_posterior),
        strict=True,
    ):
        np.testing.assert_allclose(line.get_xdata(), np.ravel(posterior.mean()))
        np.testing.assert_allclose(line.get_ydata(), np.ravel(posterior.stddev()))
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [
        pytest.approx(float(np.ravel(layer.r_prior.stddev())[0]))
    ] * 2
    for posterior in ("deterministic", "cauchy"):
        bare = r1.layers.DenseRank1(3, posterior=posterior)
        bare(np.zeros((4, 5), "float32"))
        with pytest.raises(ValueError, match="a standard deviation"):
            r1.plots.factor_posteriors(bare)
    with pytest.raises(ValueError, match=r"rank-1 factors.*Received: Dense"):
        r1.plots.factor_posteriors(keras.layers.Dense(3))


def test_row_spectrum():
    x, y = linear_data()
    model = net()
    with pytest.raises(ValueError, match="has no posterior yet"):
        bk.plots.row_spectrum(model.bali_layers[0])
    model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=3.0, factorise_every=1)
    model.fit(x, y, batch_size=len(x), verbose=0)
    ax = bk.plots.row_spectrum(model.bali_layers[0], label="layer")
    _, row_covariance = conjugate(x, y, 3.0)
    expected = np.linalg.eigvalsh(row_covariance)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-4)
    assert ax.get_legend().get_texts()[0].get_text() == "layer"
    with pytest.raises(ValueError, match=r"must be a BALI layer.*Received: Dense"):
        bk.plots.row_spectrum(keras.layers.Dense(3))


def test_the_users_own_settings_stay(digits, digits_model):
    before = dict(plt.rcParams)
    p = digits_model.posterior_predictive(digits[2][:20], 2, seed=0)
    ax = r1.plots.reliability_diagram(digits[3][:20], p)
    assert dict(plt.rcParams) == before
    assert ax.xaxis.label.get_color() == r1.plots.GRAY


def luminance(color):
    """Relative luminance of sRGB, of WCAG 2."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("color", [*r1.plots.PALETTE, r1.plots.GRAY])
@pytest.mark.parametrize("page", ["#ffffff", "#131416"])
def test_colours_can_be_seen_on_light_and_dark_pages(color, page):
    low, high = sorted((luminance(color), luminance(page)))
    assert (high + 0.05) / (low + 0.05) > 3.4


def test_what_cannot_be_drawn_is_named(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    p = digits_model.posterior_predictive(x, 4, seed=0)
    number = r1.PosteriorPredictive(np.zeros((2, 5, 1), "float32"), r1.likelihoods.Normal(0.1))
    line = np.arange(5.0)
    for draw, message in (
        (lambda: r1.plots.reliability_diagram(y[:5], p), r"each of the 20 examples.*\(5,\)"),
        (lambda: r1.plots.reliability_diagram(p, y), "`predictive` must be what"),
        (lambda: r1.plots.ood_histogram(p.mean(), p), "`inside` must be what .* a Numpy"),
        (lambda: r1.plots.calibration_curve(line[:3], number), "each of the 5 examples"),
        (lambda: r1.plots.calibration_curve(line * np.nan, number), "targets that are not missing"),
        (lambda: r1.plots.predictive_band(line, number, data=line), "`data` must be a pair"),
        (lambda: r1.plots.predictive_band(line, number, (line, line[:2])), "`data` must be a pair"),
        (lambda: r1.plots.predictive_band(line * np.nan, number), "`x` must be finite"),
        (lambda: r1.plots.training_history({"nll": []}), "'nll' of an epoch or more"),
        (lambda: r1.plots.uncertainty_map(np.zeros((0, 3)), np.zeros((0, 3))), "with pixels"),
        (lambda: r1.plots.uncertainty_map(np.zeros((2, 2, 4)), np.zeros((2, 2))), "W, 3"),
        (lambda: bk.plots.row_spectrum(bk.layers.DenseBali(3)), "of a model.*built=False"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"subtract 1.*Received: 1 to 10"):
        r1.plots.reliability_diagram(np.arange(1, 11).repeat(2), p)
    assert not plt.get_fignums(), "an empty figure is left behind"


def test_single_values_are_drawn_as_points():
    for history in ({"nll": [1.0], "kl": [0.1]}, {"nll": [1.0, np.nan, 0.5]}):
        ax = r1.plots.training_history(history)
        assert ax.lines[0].get_marker() == "."
    assert r1.plots.training_history({"nll": [1.0, 0.5]}).lines[0].get_marker() == "None"
