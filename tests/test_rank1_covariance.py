"""What rank-1 noise on a kernel does to the outputs of a net, to first order."""

import keras
import numpy as np
import tensorflow as tf

import tfp_rank1 as r1

SIZES, STDDEV = (4, 6, 3), 0.02


def net():
    """Two layers at fixed kernels, factors with mean 1."""
    h = inputs = keras.Input((SIZES[0],))
    posterior = r1.posteriors.NormalFixedStddev("ones", STDDEV)
    for units, activation in zip(SIZES[1:], ("tanh", None), strict=True):
        h = r1.layers.DenseRank1(units, activation=activation, posterior=posterior, kl_weight=0.0)(
            h
        )
    return keras.Model(inputs, h)


def jacobians(model, x):
    """d outputs / d kernel of every layer, `[outputs, in, units]`, float64, at factors of 1."""
    layers = model.layers[1:]
    kernels = [tf.constant(np.array(v.kernel), tf.float64) for v in layers]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernels)
        h = tf.constant(x, tf.float64)
        for kernel, activation in zip(kernels, (tf.tanh, tf.identity), strict=True):
            h = activation(tf.matmul(h, kernel))
        outputs = tf.unstack(h[0])
    return [np.stack([tape.gradient(o, w) for o in outputs]) for w in kernels], kernels


def test_rank1_noise_is_full_rank_noise_with_a_multiplicative_covariance():
    """Around W, `W o (r s')` moves outputs like W + E with
    `Cov(E_ij, E_kl) = W_ij W_kl Cov(r_i s_j, r_k s_l)`: in closed form, and by sampling."""
    model = net()
    x = np.random.default_rng(0).normal(size=(1, SIZES[0])).astype("float32")
    full, factored, second = 0.0, 0.0, 0.0
    v = STDDEV**2
    for jacobian, kernel in zip(*jacobians(model, x), strict=True):
        w = kernel.numpy()
        # Independent entries with mean 1 and variance v.
        same_row, same_column = map(np.eye, w.shape)
        covariance = (1 + v * same_row)[:, None, :, None] * (1 + v * same_column)[None, :, None] - 1
        covariance *= w[:, :, None, None] * w
        full += np.einsum("aij,ijkl,bkl->ab", jacobian, covariance, jacobian)
        # By the factors: d o / d r_i = sum_j J_ij W_ij, and so for s.
        by_r, by_s = (jacobian * w).sum(axis=2), (jacobian * w).sum(axis=1)
        factored += v * (by_r @ by_r.T + by_s @ by_s.T)
        second += v**2 * np.einsum("aij,bij->ab", jacobian * w, jacobian * w)
    np.testing.assert_allclose(full, factored + second, rtol=1e-10)
    np.testing.assert_allclose(full, factored, rtol=0.01)
    draws = 40_000
    outputs = np.float64(tf.function(lambda: model(np.repeat(x, draws, axis=0)), autograph=False)())
    sampled = np.cov(outputs.T)
    scale = np.sqrt(np.outer(np.diag(full), np.diag(full)))
    assert np.abs(sampled - full).max() < 6 * np.sqrt(2 / draws) * scale.max()
