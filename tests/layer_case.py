"""The one common test of every layer."""

import keras
import numpy as np
import tensorflow as tf

import tfp_rank1 as r1


def run_layer_case(make_layer, input_shape, ensemble_size, tmp_path, strategy, seed_dependent=True):
    """Everything that must hold for any layer of the package.

    Args:
        make_layer: `make_layer(**kwargs)` builds the layer; rank-1 layers get `kl_weight=0.1`.
        input_shape: shape of one example.
        ensemble_size: K; the layer sees K times the batch.
        tmp_path: folder for saved models.
        strategy: a strategy with two replicas.
        seed_dependent: whether outputs are random.
    """
    case = _Case(make_layer, input_shape, ensemble_size, seed_dependent)
    case.check_shapes()
    case.check_config()
    case.check_persistence(tmp_path)
    case.check_sampling()
    case.check_gradients()
    case.check_xla()
    case.check_dtype_policies()
    case.check_replicas(strategy)
    if case.has_kl:
        case.check_kl()


def as_on_any_cpu(layer, arguments):
    """The layer's call, compiled where TensorFlow has kernels for some CPUs only.

    Those are channels first and dilated transposes, of stock layers too; XLA has both everywhere.
    """
    dilated = arguments.get("dilation_rate", 1) != 1 and isinstance(
        layer, keras.layers.Conv2DTranspose
    )
    if dilated or arguments.get("data_format") == "channels_first":
        return tf.function(layer, jit_compile=True, autograph=False)
    return layer


class _Case:
    def __init__(self, make_layer, input_shape, ensemble_size, seed_dependent):
        self.has_kl = bool(rank1_layers(make_layer())) or hasattr(make_layer(), "_rank1")
        self.make = (lambda: make_layer(kl_weight=0.1)) if self.has_kl else make_layer
        self.input_shape = input_shape
        self.members = ensemble_size
        self.seed_dependent = seed_dependent
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(4, *input_shape)).astype("float32")

    def model(self):
        inputs = keras.Input(self.input_shape)
        h = r1.layers.TileMembers(self.members)(inputs)
        return keras.Model(inputs, self.make()(h))

    def check_shapes(self):
        """Symbolic, eager and graph shapes agree; a dynamic batch works."""
        model = self.model()
        rows = self.members * len(self.x)
        layer = self.make()
        expected = layer.compute_output_shape((rows, *self.input_shape))
        assert tuple(model(self.x).shape) == tuple(expected)
        assert model.output_shape[1:] == tuple(expected)[1:]
        signature = tf.TensorSpec([None, *self.input_shape])
        graph = tf.function(lambda x: model(x), input_signature=[signature], autograph=False)
        assert tuple(graph(self.x[:3]).shape) == (expected[0] // 4 * 3, *expected[1:])

    def check_config(self):
        """A layer rebuilt from its config has the same config and the same weights."""
        layer = self.make()
        config = layer.get_config()
        clone = type(layer).from_config(config)
        assert clone.get_config() == config
        shape = (self.members * 2, *self.input_shape)
        layer.build(shape)
        clone.build(shape)
        assert [(v.path, v.shape) for v in layer.weights] == [
            (v.path, v.shape) for v in clone.weights
        ]

    def check_persistence(self, tmp_path):
        """`.keras`, `.weights.h5` and `clone_model` keep function and random state."""
        model = self.model()
        model(self.x)
        path = str(tmp_path / "model.keras")
        model.save(path)
        model.save_weights(tmp_path / "model.weights.h5")
        fresh = keras.models.clone_model(model)
        assert [v.shape for v in fresh.weights] == [v.shape for v in model.weights]
        fresh.load_weights(tmp_path / "model.weights.h5")
        expected = model(self.x)
        np.testing.assert_array_equal(keras.models.load_model(path)(self.x), expected)
        np.testing.assert_array_equal(fresh(self.x), expected)

    def check_sampling(self):
        """Calls differ, also in inference; the posterior mean does not; a seed governs all."""
        model = self.model()
        first, second = model(self.x, training=False), model(self.x, training=False)
        assert np.array_equal(first, second) != self.seed_dependent
        with r1.posterior_mean():
            np.testing.assert_array_equal(model(self.x), model(self.x))
        with r1.random.seed_scope(r1.random.make_seed(3)):
            first = model(self.x)
        with r1.random.seed_scope(r1.random.make_seed(3)):
            np.testing.assert_array_equal(model(self.x), first)

    def check_gradients(self):
        """Every trainable weight gets a finite gradient from outputs and losses."""
        model = self.model()
        for variable, gradient in zip(
            model.trainable_variables, gradients(model, self.x), strict=True
        ):
            assert gradient is not None, variable.path
            assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.path

    def check_xla(self):
        """Under XLA the posterior mean is the same and the losses are finite."""
        model = self.model()

        @tf.function(jit_compile=True, autograph=False)
        def compiled(x):
            outputs, losses = model(x), sum(model.losses, tf.zeros(()))
            with r1.posterior_mean():
                return outputs, losses, model(x)

        outputs, losses, mean = compiled(self.x)
        assert np.isfinite(outputs).all()
        assert np.isfinite(losses)
        with r1.posterior_mean():
            np.testing.assert_allclose(mean, model(self.x), atol=1e-5)

    def check_dtype_policies(self):
        """Half precision computes in half precision and keeps posteriors in float32.

        What only moves rows leaves them as they are.
        """
        for policy in ("mixed_bfloat16", "mixed_float16", "float64"):
            keras.config.set_dtype_policy(policy)
            model = self.model()
            outputs = model(self.x)
            computes = keras.config.dtype_policy().compute_dtype
            assert outputs.dtype == (computes if model.layers[-1].weights else self.x.dtype)
            assert np.isfinite(tf.cast(outputs, tf.float32)).all()
            losses = model.losses
            assert all(loss.dtype == tf.float32 for loss in losses)
            for layer in rank1_layers(model.layers[-1]):
                assert {v.dtype for v in layer.factor_variables} == {"float32"}
        keras.config.set_dtype_policy("float32")

    def check_replicas(self, strategy):
        """Samples of two replicas differ, and a step on both keeps their weights equal."""
        with strategy.scope():
            model = self.model()
            optimizer = keras.optimizers.SGD()
            optimizer.build(model.trainable_variables)

        def step():
            outputs = model(self.x)
            if model.trainable_variables:
                optimizer.apply(gradients(model, self.x))
            return outputs

        # Compiled, it is what `fit` runs: see `test_distribution.py`.
        first, second = strategy.experimental_local_results(strategy.run(step))
        assert np.array_equal(first, second) != self.seed_dependent
        assert np.isfinite(first).all()
        for variable in model.trainable_variables:
            copies = strategy.experimental_local_results(variable.value)
            np.testing.assert_allclose(copies[0], copies[-1], atol=1e-6)

    def check_kl(self):
        """The KL is positive, and 0 where posterior and prior are equal."""
        layer = self.make()
        layer.build((self.members, *self.input_shape))
        layers = rank1_layers(layer)
        assert len(layer.losses) == len(layers)
        for layer in layers:
            assert layer.kl() > 0
            for factor in layer._factors():
                prior = factor.prior_distribution()
                loc, rho = (factor.posterior_variables[name] for name in ("loc", "rho"))
                loc.assign(tf.broadcast_to(prior.loc, loc.shape))
                scale = tf.broadcast_to(prior.scale, rho.shape)
                rho.assign(tf.math.log(tf.math.expm1(scale)))
            np.testing.assert_allclose(layer.kl(), 0.0, atol=1e-3)


def rank1_layers(layer):
    """The layer itself, its cell or its projections, as far as they have factors."""
    return [v for v in layer._flatten_layers() if isinstance(v, r1.layers.Rank1Mixin)]


def gradients(model, x):
    """Of the mean squared output plus the losses, for every trainable weight."""
    with tf.GradientTape() as tape:
        outputs = tf.cast(model(x, training=True), tf.float32)
        loss = tf.reduce_mean(outputs**2) + sum(model.losses, 0.0)
    return tape.gradient(loss, [v.value for v in model.trainable_variables])
