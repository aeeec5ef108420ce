"""What a TPU needs: every step and layer compiles to static shapes and native operations."""

import re

import pytest
import tensorflow as tf
from strategy_case import BATCH, METHODS, data
from test_bali_layers import CASES as BALI_CASES
from test_layers import CASES as RANK1_CASES

# Bounded dynamic shapes, calls of CPU libraries, double precision.
FORBIDDEN = [r"\[<=", "set-dimension-size", "custom_call_target", r"f64\["]


def compiled(function, *arrays):
    """The compiler's program for a function of arrays."""
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    function = tf.function(function, jit_compile=True, autograph=False)
    return function.experimental_get_compiler_ir(*specs)(stage="hlo")


def check(program):
    for pattern in FORBIDDEN:
        found = re.search(f".*{pattern}.*", program)
        assert found is None, found[0][:400]


def fitted(method):
    """A model whose variables and slots exist."""
    x, labels, weights = data()
    model = METHODS[method]()
    if method == "bali":
        model.compile(warmup_steps=0, factorise_every=4)
    else:
        model.compile("adam")
    model.fit(x, labels, sample_weight=weights, batch_size=BATCH, verbose=0)
    return model, x[:BATCH], labels[:BATCH].astype("int32"), weights[:BATCH]


@pytest.mark.parametrize("method", ["bali", "rank1_normal"])
def test_steps(method):
    """Training with weights, testing and predicting."""
    model, x, labels, weights = fitted(method)
    check(compiled(lambda *batch: model.train_step(batch), x, labels, weights))
    check(compiled(lambda *batch: model.test_step(batch), x, labels))
    check(compiled(lambda batch: model.predict_step((batch,)), x))


LAYERS = {f"rank1_{name}": case for name, case in RANK1_CASES.items()}
LAYERS |= {f"bali_{name}": (case[0], case[2]) for name, case in BALI_CASES.items()}


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


def test_a_dynamic_shape_is_found():
    with pytest.raises(AssertionError):
        check(compiled(lambda x: tf.boolean_mask(x, x > 0.0), tf.ones(4)))
