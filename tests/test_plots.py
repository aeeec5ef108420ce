"""The plots draw what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

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
