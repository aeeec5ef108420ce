"""Inference against exact objects, and the same result however it is executed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import Reference, conjugate, linear_data, net, posteriors

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.inference import cadence
from bali_keras.inference.posterior import LayerPosterior

EXACT = {"warmup_steps": 0, "prior_row_precision": 3.0, "factorise_every": 1}


def fitted(model, x, y, batch_size, epochs=1, compile_arguments=None, **kwargs):
    model.compile(**(compile_arguments or {}))
    model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return model


def test_one_full_batch_step_is_conjugate_regression():
    x, y = linear_data()
    model = fitted(net(), x, y, len(x), compile_arguments={"forgetting": 1.0, **EXACT})
    mean, row_covariance = conjugate(x, y, 3.0)
    posterior = model.bali_layers[0].posterior
    np.testing.assert_allclose(posterior.mean(), mean, atol=1e-5)
    state = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(state.row_covariance(), row_covariance, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(state.column_covariance(), 0.09 * np.eye(2), rtol=1e-5)
    h = np.c_[x, np.ones(len(x))]
    epistemic = 0.09 * np.einsum("nd,de,ne->n", h, row_covariance, h)[:, None]
    p = model.posterior_predictive(x, num_samples=2)
    np.testing.assert_allclose(p.mean(), h @ mean, atol=1e-5)
    np.testing.assert_allclose(p.epistemic_variance(), epistemic + np.zeros((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(p.variance(), 0.09 + epistemic + np.zeros((1, 2)), rtol=1e-4)
    expected = -0.5 * np.sum(
        (y - h @ mean) ** 2 / (0.09 + epistemic) + np.log(2 * np.pi * (0.09 + epistemic)), axis=1
    )
    np.testing.assert_allclose(p.log_prob(y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 60])
def test_streaming_averages_do_not_depend_on_the_split(batch_size):
    x, y = linear_data()
    arguments = {"forgetting": bk.schedules.Averaging(), **EXACT}
    model = fitted(net(), x, y, batch_size, compile_arguments=arguments)
    mean, row_covariance = conjugate(x, y, 3.0)
    state = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(state.mean, mean, atol=2e-5)
    np.testing.assert_allclose(state.row_covariance(), row_covariance, rtol=1e-4, atol=1e-7)


def test_matrix_prior_and_prior_mean():
    x, y = linear_data()
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4, 4))
    precision = (a @ a.T + np.eye(4)).astype("float32")
    inputs = keras.Input((3,))
    layer = bk.layers.DenseBali(2, prior_at_mean=True)
    model = bk.BaliModel(inputs, layer(inputs), likelihood=r1.likelihoods.Normal(scale=0.3))
    prior_mean = rng.normal(size=(4, 2)).astype("float32")
    layer.posterior_state.prior_mean.assign(prior_mean)
    arguments = {**EXACT, "forgetting": 1.0, "prior_row_precision": precision}
    fitted(model, x, y, len(x), compile_arguments=arguments)
    h = np.c_[x, np.ones(len(x))].astype("float64")
    row = precision + h.T @ h
    expected = np.linalg.solve(row, precision @ prior_mean + h.T @ y)
    np.testing.assert_allclose(layer.posterior.mean(), expected, atol=1e-5)


def test_kl_is_that_of_the_matrix_normals():
    x, y = linear_data()
    model = fitted(net(), x, y, len(x), compile_arguments={"forgetting": 1.0, **EXACT})
    model.factorise()
    q = model.bali_layers[0].posterior_state.matrix_normal()
    prior = bk.matrix_normal.MatrixNormal(
        tf.zeros((4, 2)), tf.eye(4) / np.sqrt(3.0), q.column_factor
    )
    np.testing.assert_allclose(model.bali_layers[0].kl(), q.kl_divergence(prior), rtol=1e-4)


def test_deep_linear_net_equals_the_moving_average_form():
    """The step of the mean is the moving average of natural parameters, written differently."""
    x, y = linear_data(rows=40)
    model = net(hidden=(4,))
    arguments = {**EXACT, "forgetting": 0.3, "damping": (0.5, 0.0), "trust_region": None}
    reference = Reference(model, 3.0, 0.5, 0.3, len(x))
    with r1.posterior_mean():
        fitted(model, x, y, 10, epochs=2, compile_arguments=arguments)
    for _ in range(2):
        for start in range(0, 40, 10):
            reference.step(x[start : start + 10], y[start : start + 10], 0.3)
    for layer, mean, row, fisher in zip(
        model.bali_layers, reference.means, reference.rows, reference.fishers, strict=True
    ):
        state = layer.posterior_state
        np.testing.assert_allclose(state.mean, mean, rtol=1e-5, atol=1e-5)
        if layer is not model.bali_layers[-1]:  # whose V is the noise
            np.testing.assert_allclose(state.fisher.value(), fisher, rtol=1e-4, atol=1e-5)
        covariance = state.matrix_normal().row_covariance()
        np.testing.assert_allclose(covariance, np.linalg.inv(row), rtol=1e-4, atol=2e-6)


def test_weight_two_is_seeing_the_example_twice():
    x, y = linear_data(rows=20)
    weights = np.where(np.arange(20) < 5, 2.0, 1.0).astype("float32")
    arguments = {"forgetting": bk.schedules.Averaging(), **EXACT}
    weighted = fitted(net(), x, y, 4, compile_arguments=arguments, sample_weight=weights)
    assert weighted.num_train_examples == 25.0
    doubled = np.r_[x, x[:5]], np.r_[y, y[:5]]
    repeated = fitted(net(), *doubled, 4, compile_arguments=arguments)
    for a, b in zip(posteriors(weighted)[0], posteriors(repeated)[0], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_weight_zero_is_not_seeing_the_example():
    x, y = linear_data(rows=20)
    weights = np.where(np.arange(20) < 8, 0.0, 1.0).astype("float32")
    arguments = {"forgetting": bk.schedules.Averaging(), **EXACT}
    weighted = fitted(net(), x, y, 4, compile_arguments=arguments, sample_weight=weights)
    mean, _ = conjugate(x[8:], y[8:], 3.0)
    np.testing.assert_allclose(weighted.bali_layers[0].posterior.mean(), mean, atol=2e-5)


def test_learned_noise_has_the_closed_form():
    """One layer, full batches: sigma^2 = RSS / (N - effective parameters), up to its prior."""
    x, y = linear_data(rows=400, outputs=1, noise=0.3)
    model = net(outputs=1, likelihood=r1.likelihoods.Normal())
    arguments = {**EXACT, "forgetting": 1.0, "prior_row_precision": 1e-3, "noise_prior": 1e-6}
    fitted(model, x, y, len(x), epochs=60, compile_arguments=arguments)
    mean, _ = conjugate(x, y, 1e-3)
    residuals = y - np.c_[x, np.ones(400)] @ mean
    expected = np.sum(residuals**2) / (400 - 4)
    np.testing.assert_allclose(model.likelihood.scale, [np.sqrt(expected)], rtol=1e-3)


def execution(how, strategy=None):
    """Three epochs of a net with noise in its forward pass, executed in one way."""
    x, y = linear_data(rows=44)
    labels = (y[:, 0] > 0).astype("int32")
    keras.utils.set_random_seed(3)

    def build():
        model = net(hidden=(8,), activation="relu", likelihood="categorical")
        for layer in model.bali_layers:
            mean = layer.posterior_state.mean
            mean.assign(np.random.default_rng(0).normal(size=mean.shape) * 0.5)
        model.seed_generator.state.assign([5, 0])
        model.compile(
            warmup_steps=2, run_eagerly=how == "eager", jit_compile=how == "xla", factorise_every=2
        )
        return model

    if strategy is None:
        model = build()
    else:
        with strategy.scope():
            model = build()
    model.fit(x, labels, batch_size=8, epochs=3, shuffle=False, verbose=0)
    return posteriors(model)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["xla", "eager", "replicas"])
def test_every_execution_gives_the_same_posterior(how, strategy):
    """Also with sampled pre-activations and scores, and a short last batch (44 = 5 * 8 + 4)."""
    expected = execution("graph")
    found = execution(how, strategy if how == "replicas" else None)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_local_reparameterization_has_the_moments_of_the_posterior():
    """Pre-activations in training are those of weights drawn from the Kronecker covariance."""
    x, y = linear_data()
    model = fitted(net(), x, y, len(x), compile_arguments={"forgetting": 1.0, **EXACT})
    layer, state = model.bali_layers[0], model.bali_layers[0].posterior_state.matrix_normal()
    repeated = tf.repeat(x[:2], 20_000, axis=0)
    with tf.GradientTape() as tape, bk.recording.Recorder(tape, tf.constant([1, 2])) as recorder:
        local = np.reshape(layer(repeated, training=True), [2, 20_000, 2])
    assert len(recorder.records[layer]) == 1
    weights = state.sample(20_000, (3, 4))
    h = np.c_[x[:2], np.ones(2)].astype("float32")
    drawn = np.einsum("nd,sdk->nsk", h, weights)
    for i in range(2):
        variance = float(state.row_variance(h)[i]) * np.array(state.column_covariance())
        for draws in (local[i], drawn[i]):
            tolerance = 5 * np.sqrt(np.diag(variance)[:, None] * np.diag(variance) * 2 / 20_000)
            assert (np.abs(np.cov(draws.T) - variance) < tolerance).all()
            np.testing.assert_allclose(
                draws.mean(0),
                h[i] @ np.array(state.mean),
                atol=5 * np.sqrt(variance.max() / 20_000),
            )


@pytest.mark.parametrize("weights", [None, 2.0])
def test_rows_that_act_together_inform_more(weights):
    """T equal rows of an example count T times as much as T independent ones."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(200, 1, 3)), 5, axis=1).astype("float32")
    inputs = keras.Input((5, 3))
    h = bk.layers.DenseBali(1)(inputs)
    outputs = bk.layers.DenseBali(1)(keras.layers.GlobalAveragePooling1D()(h))
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal(scale=1.0))
    model.compile(warmup_steps=0, forgetting=1.0, damping=(1e-6, 0.0))
    weight = None if weights is None else np.full(200, weights)
    model.fit(x, x[:, 0, :1], sample_weight=weight, batch_size=200, verbose=0)
    state = model.bali_layers[0].posterior_state
    together = float(state.together.value() / state.fisher.value()[0, 0])
    assert together == pytest.approx(5.0, rel=0.2)
    column = state.matrix_normal().column_covariance()
    precision = together * state.fisher.value() + 1e-6
    np.testing.assert_allclose(column, 1.0 / precision, rtol=1e-4)


@pytest.mark.parametrize("inputs", [20, 150])
def test_wide_output_layers_stream_exactly(inputs):
    """Above the size where hidden layers save factorisations, the exact layer does not."""
    x, y = linear_data(rows=400, inputs=inputs, outputs=1)
    model = net(inputs, outputs=1)
    model.compile(forgetting=bk.schedules.Averaging(), warmup_steps=0, prior_row_precision=1.0)
    model.fit(x, y, batch_size=20, verbose=0)
    mean, covariance = conjugate(x, y, 1.0)
    found = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(found.mean, mean, atol=1e-3)
    np.testing.assert_allclose(np.diag(found.row_covariance()), np.diag(covariance), rtol=1e-3)


def test_a_wide_linear_regression_stays_finite_by_default():
    """More inputs than the warm-up has examples."""
    x, y = linear_data(rows=600, inputs=400, outputs=1)
    model = net(400, outputs=1)
    model.compile()
    history = model.fit(x, y / 20.0, batch_size=20, epochs=3, verbose=0).history
    assert history["refused"] == [0.0, 0.0, 0.0]
    assert history["nll"][-1] < history["nll"][0]
    assert history["nll"][-1] < 10.0


@pytest.mark.parametrize("steps", [60, 200, 1000])
def test_covariances_are_young_enough(steps):
    """No gap between factorisations is longer than the interval at its end, or misses moments."""
    schedule = bk.schedules.Linear(0.07, 0.001)
    last = 10
    for step in range(11, steps + 1):
        rate = schedule(bk.schedules.Progress(step, 1, steps))
        between = cadence.interval(rate, 20)
        if bool(cadence.is_factorising(tf.constant(step, tf.int64), 10, between)):
            assert step - last <= int(between)
            assert bool(cadence.is_collecting(tf.constant(step, tf.int64), 10, between))
            last = step
    assert steps - last <= 16


@pytest.mark.parametrize(("inputs", "rank"), [(300, 300), (400, 20)])
def test_wide_inputs_of_any_rank_lose_no_batch(inputs, rank):
    """The first batches have fewer rows than inputs; of 400 inputs that are 20, all have."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, rank)) @ rng.normal(size=(rank, inputs)) / np.sqrt(rank)
    x = x.astype("float32")
    y = x[:, :1] + 0.3 * rng.normal(size=(2000, 1)).astype("float32")
    model = net(inputs, outputs=1)
    model.compile(forgetting=bk.schedules.Averaging(), warmup_steps=0, prior_row_precision=0.01)
    model.fit(x, y, batch_size=64, verbose=0)
    assert model.refused_updates == 0
    mean, _ = conjugate(x, y, 0.01)
    found = x @ np.array(model.bali_layers[0].posterior_state.mean)[:-1]
    np.testing.assert_allclose(found, x @ mean[:-1], atol=0.05)


def trained_by(monkeypatch, prefers_rows, every):
    """Posteriors after some steps on fewer rows than columns."""
    monkeypatch.setattr(LayerPosterior, "prefers_rows", lambda *_: prefers_rows)
    keras.utils.set_random_seed(0)
    x, y = linear_data(48, inputs=4)
    model = net(4, hidden=(12, 12), activation="tanh")
    arguments = {"factorise_every": every, "forgetting": 0.1, "prior_precision": 1.0}
    arguments |= {"warmup_steps": 2, "damping": 0.1, "covariance_scale": 1.0}
    return posteriors(fitted(model, x, y, 8, epochs=4, compile_arguments=arguments))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_rows_one_by_one_step_as_their_sum(monkeypatch, every):
    """`(H L^-1)' G V` is `L^-1 H'G V`; whether the prior pulls in every step or in every fourth."""
    one_by_one, summed = (trained_by(monkeypatch, v, every) for v in (True, False))
    for found, expected in zip(one_by_one, summed, strict=True):
        for ours, exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-5)
