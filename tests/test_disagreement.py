"""How often members predict different classes."""

import itertools

import keras
import numpy as np
import pytest

import tfp_rank1 as r1

RNG = np.random.default_rng(0)


def pairs(classes):
    """Share of pairs that differ, by example, from classes `[N, S]`."""
    found = [
        classes[:, i] != classes[:, j]
        for i, j in itertools.combinations(range(classes.shape[1]), 2)
    ]
    return np.mean(found, axis=0)


def test_disagreement_counts_pairs():
    outputs = RNG.normal(size=(50, 4, 3)).astype("float32")
    weight = RNG.uniform(size=50).astype("float32")
    y = RNG.integers(0, 3, 50)
    expected = pairs(outputs.argmax(-1))
    metric = r1.metrics.MemberDisagreement()
    for at in (slice(0, 20), slice(20, 50)):
        metric.update_state(y[at], outputs[at])
    assert float(metric.result()) == pytest.approx(expected.mean(), rel=1e-5)
    metric.reset_state()
    metric.update_state(y, outputs, weight)
    assert float(metric.result()) == pytest.approx(np.average(expected, weights=weight), rel=1e-5)


def test_disagreement_of_several_bernoulli_targets():
    outputs = RNG.normal(size=(50, 4, 2)).astype("float32")
    metric = r1.metrics.MemberDisagreement(likelihood="bernoulli")
    metric.update_state(RNG.integers(0, 2, (50, 2)).astype("float32"), outputs)
    expected = np.mean([pairs(outputs[..., t] > 0).mean() for t in range(2)])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_one_sample_agrees_with_itself_and_regressions_are_refused():
    metric = r1.metrics.MemberDisagreement()
    metric.update_state(np.zeros(5), RNG.normal(size=(5, 1, 3)).astype("float32"))
    assert float(metric.result()) == 0.0
    metric = r1.metrics.MemberDisagreement(likelihood=r1.likelihoods.Normal(scale=1.0))
    with pytest.raises(ValueError, match="for regression use"):
        metric.update_state(np.zeros((5, 1)), np.zeros((5, 2, 1), "float32"))


def test_member_variance_is_that_of_logits_but_for_their_shift():
    outputs = RNG.normal(size=(50, 4, 3)).astype("float32")
    centred = outputs - outputs.mean(-1, keepdims=True)
    metric = r1.metrics.MemberVariance()
    metric.update_state(RNG.integers(0, 3, 50), outputs + RNG.normal(size=(50, 4, 1)))
    assert float(metric.result()) == pytest.approx(centred.var(axis=1).mean(), rel=1e-4)
    metric = r1.metrics.MemberVariance(likelihood=r1.likelihoods.Normal(scale=1.0))
    metric.update_state(np.zeros((50, 3)), outputs)
    assert float(metric.result()) == pytest.approx(outputs.var(axis=1).mean(), rel=1e-5)


def test_disagreement_is_saved_with_its_name():
    metric = r1.metrics.MemberDisagreement(name="parts")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert isinstance(copy, r1.metrics.MemberDisagreement)
    assert copy.name == "parts"


def trained(digits, **arguments):
    """A net with four members after ten epochs, and its disagreement on unseen digits."""
    x, y, x_test, y_test = digits
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    with r1.members(4):
        h = r1.layers.DenseRank1(64, activation="relu", **arguments)(
            r1.layers.TileMembers()(inputs)
        )
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10, **arguments)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    model.compile(keras.optimizers.Adam(0.01), kernel_precision=0.01,
                  metrics=[r1.metrics.MemberDisagreement()])  # fmt: skip
    before = [layer.r_posterior.mean().numpy() for layer in model.layers[2:4]]
    model.fit(x, y, epochs=10, batch_size=64, verbose=0)
    after = [layer.r_posterior.mean().numpy() for layer in model.layers[2:4]]
    with r1.posterior_mean():
        scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    return scores["disagreement"], before, after


def test_members_differ_by_default_and_stay_so(digits):
    disagreement, before, after = trained(digits)
    alike, _, _ = trained(digits, posterior=r1.posteriors.Normal())
    assert disagreement > 2.0 * alike
    assert disagreement > 0.02
    for start, end in zip(before, after, strict=True):
        assert set(np.unique(start)) == {-1.0, 1.0}
        assert 0.6 < np.mean(start > 0) < 0.9
        # Training moves the means, and turns hardly any sign.
        assert np.mean(np.sign(end) != start) < 0.1
        assert np.std(end, axis=0).mean() > 0.5 * np.std(start, axis=0).mean()


def test_narrow_factors_start_around_one():
    layer = r1.layers.DenseRank1(5, ensemble_size=4)
    layer.build((None, 63))
    for distribution in (layer.r_posterior, layer.s_posterior):
        mean = distribution.mean().numpy()
        assert 0.05 < mean.std() < 0.15
        assert abs(mean.mean() - 1.0) < 0.1
    with pytest.raises(ValueError, match="`width` must be a whole number"):
        r1.initializers.WideSigns(width=0)
