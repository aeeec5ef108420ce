"""What a TPU needs: every step and layer compiles to static shapes and native operations."""

import re

import keras
import pytest
import tensorflow as tf
from resume_case import mixed
from strategy_case import INPUTS, METHODS, data
from test_bali_layers import CASES as BALI_CASES
from test_layers import CASES as RANK1_CASES

import bali_keras as bk
import tfp_rank1 as r1

BATCH = 6
# Bounded dynamic shapes, calls of CPU libraries, double precision.
FORBIDDEN = [r"\[<=", "set-dimension-size", "custom_call_target", r"f64\["]


def compiled(function, *arrays):
    """The compiler's program for a function of arrays."""
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    function = tf.function(function, jit_compile=True, autograph=False)
    return function.experimental_get_compiler_ir(*specs)(stage="hlo")


def check(program):
    for pattern in FORBIDDEN:
        found = re.search(pattern, program)  # of a whole line it would take most of the time
        assert found is None, program[max(found.start() - 200, 0) : found.end() + 200]


def steps(model, labels, **compile_arguments):
    """Check training with weights, testing and predicting, once variables and slots exist."""
    x, _, weights = data()
    x, labels, weights = x[:BATCH], labels[:BATCH], weights[:BATCH]
    model.compile(run_eagerly=True, **compile_arguments)
    model.fit(x, labels, sample_weight=weights, batch_size=BATCH, verbose=0)
    check(compiled(lambda *batch: model.train_step(batch), x, labels, weights))
    check(compiled(lambda *batch: model.test_step(batch), x, labels))
    check(compiled(lambda batch: model.predict_step((batch,)), x))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("bali", {"warmup_steps": 0, "factorise_every": 4}),
        ("rank1_normal", {"optimizer": "adam"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("rank1_normal", {"optimizer": "adam", "member_batches": "split"}),
                ("rank1_normal", {"optimizer": "adam", "num_train_samples": 3}),
                ("rank1_normal", {"optimizer": "adam", "factor_learning_rate_multiplier": 2.0}),
                ("mixed", {"optimizer": "adam", "warmup_steps": 2}),
            )
        ),
    ],
)
def test_steps_of_classifiers(method, arguments):
    labels = data()[1].astype("int32")
    steps((METHODS | {"mixed": mixed})[method](), labels, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_steps_of_regressions_with_learned_noise(method):
    x = inputs = keras.Input((INPUTS,))
    if method == "bali":
        x = bk.layers.DenseBali(4, activation="relu")(x)
        outputs, kind = bk.layers.DenseBali(2)(x), bk.BaliModel
    else:
        x = r1.layers.DenseRank1(2, ensemble_size=2)(r1.layers.TileMembers(2)(x))
        outputs, kind = r1.layers.SplitMembers(2)(x), r1.BayesianModel
    model = kind(inputs, outputs, likelihood=r1.likelihoods.Normal())
    arguments = {} if method == "bali" else {"optimizer": "adam"}
    steps(model, data()[0][:, :2], **arguments)


LAYERS = {f"rank1_{name}": case for name, case in RANK1_CASES.items()}
LAYERS |= {f"bali_{name}": (case[0], case[2]) for name, case in BALI_CASES.items() if case[2]}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    """Forward with samples, and gradients."""
    make, shape = LAYERS[name][:2]
    x = tf.random.stateless_normal((4, *shape), (1, 2))
    layer = make()
    layer(x)

    def call(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.square(layer(x)))
        return tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)])

    check(compiled(call, x))


def test_an_embedding():
    """Of whole numbers, which have no gradient."""
    layer = bk.layers.EmbeddingBali(7, 3)
    index = tf.constant([[1, 2], [0, 6]])
    layer(index)
    check(compiled(layer, index))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.boolean_mask(x, x > 0.0),
        lambda x: tf.linalg.qr(x)[0],
        lambda x: tf.cast(x, tf.float64) * 2.0,
    ],
    ids=["dynamic shape", "library", "double precision"],
)
def test_what_a_tpu_has_not_is_found(function):
    with pytest.raises(AssertionError):
        check(compiled(function, tf.ones([2, 2])))
