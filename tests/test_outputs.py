"""Outputs: every layout against plain NumPy, with and without positions."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_rank1 import likelihoods
from tfp_rank1.outputs import (
    Outputs,
    as_members,
    check_output_shape,
    join_copies,
    join_passes,
    num_members,
)
from tfp_rank1.predictive import PredictiveMixture

S, N, D = 3, 4, 2
POSITIONS = [(), (5,), (2, 3)]


def values(positions, axis=0):
    """`[S, N, ..., D]` (axis 0) or `[N, S, ..., D]` (axis 1) with the same numbers."""
    rng = np.random.default_rng(0)
    by_sample = rng.normal(size=(S, N, *positions, D)).astype("float32")
    return by_sample if axis == 0 else np.swapaxes(by_sample, 0, 1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_both_layouts_hold_the_same(positions, axis):
    expected = values(positions)
    outputs = Outputs(tf.constant(values(positions, axis)), axis)
    assert (outputs.num_samples, outputs.num_outputs) == (S, D)
    assert outputs.num_position_axes == len(positions)
    np.testing.assert_array_equal(outputs.by_sample().values, expected)
    np.testing.assert_array_equal(outputs.by_example().values, np.swapaxes(expected, 0, 1))
    np.testing.assert_allclose(outputs.average(outputs.values), expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(outputs.variance(outputs.values), expected.var(0), atol=1e-6)
    low, high = outputs.bounds(outputs.values)
    np.testing.assert_array_equal(low, expected.min(0))
    np.testing.assert_array_equal(high, expected.max(0))
    np.testing.assert_allclose(
        outputs.logsumexp(outputs.values), np.log(np.exp(expected).sum(0)), rtol=1e-5
    )
    targets = expected[0]
    difference = outputs.values - outputs.for_all_samples(tf.constant(targets))
    np.testing.assert_allclose(
        outputs.like(difference).by_sample().values, expected - targets, atol=1e-6
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_are_summed_or_become_examples(positions, axis):
    outputs = Outputs(tf.constant(values(positions, axis)), axis)
    of_targets = outputs.values[..., 0]
    found = outputs.like(outputs.sum_positions(of_targets)[..., tf.newaxis]).by_sample().values
    expected = values(positions)[..., 0].reshape(S, N, -1).sum(-1)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-5)
    flat = outputs.flatten_positions()
    assert flat.sample_axis == axis and flat.num_position_axes == 0
    np.testing.assert_array_equal(flat.by_sample().values, values(positions).reshape(S, -1, D))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_are_chosen_and_spread(positions, axis):
    outputs = Outputs(tf.constant(values(positions, axis)), axis)
    index = np.array([[0, 2], [1, 1], [2, 0], [0, 0]])
    by_example = values(positions, 1)
    expected = np.stack([row[i] for row, i in zip(by_example, index, strict=True)])
    np.testing.assert_array_equal(outputs.gather_samples(tf.constant(index)).values, expected)
    points = tf.constant([-1.0, 1.0])
    spread = outputs.spread(points, tf.ones_like(outputs.values) * 0.5)
    assert spread.num_samples == 2 * S and spread.sample_axis == axis
    expected = np.concatenate([values(positions) - 0.5, values(positions) + 0.5])
    np.testing.assert_allclose(spread.by_sample().values, expected, atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_passes_are_samples(positions):
    passes, members = 2, 3
    rng = np.random.default_rng(1)
    given = rng.normal(size=(passes, N, members, *positions, D)).astype("float32")
    expected = np.moveaxis(given, 2, 1).reshape(passes * members, N, *positions, D)
    sizes = [*[None] * len(positions), D]
    found = join_passes(tf.constant(given), passes, sizes)
    np.testing.assert_array_equal(found, expected)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
    def in_graph(count):
        return join_passes(tf.constant(given)[:count], count, sizes)

    np.testing.assert_array_equal(in_graph(1), expected[:members])


def test_copies_of_a_batch_are_members():
    copies, members = 2, 3
    rng = np.random.default_rng(1)
    given = rng.normal(size=(copies * N, members, D)).astype("float32")
    expected = np.swapaxes(given.reshape(copies, N, members, D), 0, 1)
    expected = expected.reshape(N, copies * members, D)
    np.testing.assert_array_equal(join_copies(tf.constant(given), copies), expected)
    single = join_copies(tf.constant(given[:, 0]), copies)
    np.testing.assert_array_equal(single, np.swapaxes(given[:, 0].reshape(copies, N, D), 0, 1))


def test_members_of_a_model():
    assert as_members(np.zeros((N, D))).values.shape == (N, 1, D)
    assert num_members((None, D)) == 1 and num_members((None, 4, D)) == 4
    # Positions are axes between; a net says whether axis 1 is one of members.
    assert as_members(np.zeros((N, 4, 5, D)), has_members=True).values.shape == (N, 4, 5, D)
    assert as_members(np.zeros((N, 4, 5, D)), has_members=False).values.shape == (N, 1, 4, 5, D)
    with pytest.raises(ValueError, match=r"\[batch, members, ..., outputs\].*Received: .*\(2, 1\)"):
        as_members(np.zeros(2))
    with pytest.raises(ValueError, match="known numbers of members"):
        check_output_shape((None, None, D))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mixture_counts_the_positions_of_an_example_together(positions, axis):
    """`log 1/S sum_s prod_p p(y_p | outputs_sp)`: positions of one example share the sample."""
    likelihood = likelihoods.Normal(scale=0.7)
    by_sample = values(positions)
    y = np.random.default_rng(2).normal(size=(N, *positions, D)).astype("float32")
    mixture = PredictiveMixture(likelihood, values(positions, axis), axis)
    density = -0.5 * ((y - by_sample) / 0.7) ** 2 - np.log(0.7) - 0.5 * np.log(2 * np.pi)
    joint = density.reshape(S, N, -1).sum(-1)
    expected = np.log(np.exp(joint).mean(0))
    np.testing.assert_allclose(mixture.log_prob(y), expected, rtol=1e-4)
    assert mixture.mean().shape == mixture.quantile(0.3).shape == (N, *positions, D)
    np.testing.assert_allclose(mixture.cdf(mixture.quantile(0.3)), 0.3, atol=1e-4)


def test_labels_of_positions():
    """Labels `[B, T]` and `[B, T, 1]` of outputs `[B, K, T, C]` are the same."""
    logits = np.random.default_rng(0).normal(size=(N, S, 5, 3)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 3, (N, 5))
    mixture = PredictiveMixture(likelihoods.Categorical(), logits, 1)
    np.testing.assert_array_equal(mixture.log_prob(labels), mixture.log_prob(labels[..., None]))
    with pytest.raises(ValueError, match=r"shape \[batch, 5, 1\] or \[batch, 5\]"):
        mixture.log_prob(labels[:, 0])
