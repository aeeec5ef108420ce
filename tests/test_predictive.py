"""posterior_predictive, its answers, and what is exported of it."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import net
from conftest import small_classifier

import tfp_rank1 as r1


def test_samples_have_the_documented_shape(digits, digits_model):
    """S is rounded up to a multiple of the members; batches are joined."""
    x = digits[2][:50]
    p = digits_model.posterior_predictive(x, num_samples=5, batch_size=16)
    assert p.samples.shape == (6, 50, 10)
    assert p.outputs.shape == (50, 6, 10)
    assert p.mean().shape == (50, 10)
    np.testing.assert_allclose(tf.reduce_sum(p.mean(), axis=-1), 1.0, rtol=1e-5)


def test_seed_governs_the_samples(digits, digits_model):
    x = digits[2][:8]
    first = digits_model.posterior_predictive(x, 4, seed=1).samples
    np.testing.assert_array_equal(digits_model.posterior_predictive(x, 4, seed=1).samples, first)
    assert not np.array_equal(digits_model.posterior_predictive(x, 4, seed=2).samples, first)
    assert not np.array_equal(
        digits_model.posterior_predictive(x, 4).samples,
        digits_model.posterior_predictive(x, 4).samples,
    )
    samples = np.asarray(first)
    assert len(np.unique(samples[:, 0, 0])) == 4


def test_datasets_and_structures(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    expected = digits_model.posterior_predictive(x, 4, batch_size=8, seed=1).samples
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    actual = digits_model.posterior_predictive(data, 4, seed=1).samples
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    h = r1.layers.TileMembers(2)(keras.layers.Concatenate()(list(inputs.values())))
    h = r1.layers.SplitMembers(2)(r1.layers.DenseRank1(1, ensemble_size=2)(h))
    model = r1.BayesianModel(inputs, h, likelihood=r1.likelihoods.Normal(0.1))
    arrays = {"a": np.ones((7, 2), "float32"), "b": np.ones((7, 3), "float32")}
    assert model.posterior_predictive(arrays, 3, batch_size=4).samples.shape == (4, 7, 1)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, size):
        super().__init__()
        self.x, self.size = x, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], np.zeros(len(self.x[part]))


def test_other_batches(digits, digits_model):
    x = digits[2][:20]
    expected = digits_model.posterior_predictive(x, 4, batch_size=8, seed=1).samples
    iterator = (x[start : start + 8] for start in (0, 8, 16))
    for batches in (Batches(x, 8), iterator):
        samples = digits_model.posterior_predictive(batches, 4, seed=1).samples
        np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_moments_are_those_of_the_samples(digits, digits_model, regression_model):
    x = digits[2][:40]
    full = digits_model.posterior_predictive(x, 8, batch_size=16, seed=3)
    moments = digits_model.posterior_predictive(x, 8, batch_size=16, seed=3, reduce="moments")
    names = (
        "mean", "variance", "stddev", "aleatoric_variance", "epistemic_variance", "entropy",
        "expected_entropy", "mutual_information",
    )  # fmt: skip
    for name in names:
        np.testing.assert_allclose(
            getattr(moments, name)(), getattr(full, name)(), atol=1e-5, err_msg=name
        )
    with pytest.raises(AttributeError, match="`log_prob` needs the samples"):
        moments.log_prob(digits[3][:40])
    x = np.zeros((3, 1), "float32")
    moments = regression_model.posterior_predictive(x, 4, reduce="moments")
    assert moments.stddev().shape == (3, 1)
    with pytest.raises(ValueError, match="`entropy` has no closed form"):
        moments.entropy()


def test_posterior_mean_and_samples_do_not_mix(digits, digits_model):
    x = digits[2][:4]
    with r1.posterior_mean():
        p = digits_model.posterior_predictive(x, 4)
        np.testing.assert_array_equal(p.samples[:2], p.samples[2:])
    p = digits_model.posterior_predictive(x, 4)
    assert not np.array_equal(p.samples[:2], p.samples[2:])


def test_member_sampling_draws_anew_in_every_pass():
    model = small_classifier(num_inputs=3, layer_kwargs={"sampling": "member"})
    samples = np.asarray(model.posterior_predictive(np.ones((2, 3), "float32"), 8).samples)
    assert len(np.unique(samples[:, 0, 0])) == 8
    np.testing.assert_allclose(samples[:, 0], samples[:, 1], rtol=1e-5)


def test_compiled_samplers_do_not_pile_up():
    """Each holds a traced graph: of many ways to ask, the latest stay."""
    inputs = keras.Input((2,))
    model = r1.BayesianModel(inputs, keras.layers.Dense(1)(inputs), likelihood="bernoulli")
    for count in range(1, 22):
        model.posterior_predictive(np.ones((1, 2)), num_samples=count)
    assert len(model._samplers) == 16
    latest = model._samplers.get(model, tf.ones((1, 2)), 21)
    model.posterior_predictive(np.ones((3, 2), "float32"), num_samples=21)
    assert model._samplers.get(model, tf.ones((5, 2)), 21) is latest
    model._samplers.clear()
    assert len(model._samplers) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(digits, digits_model, bad):
    x = digits[2][:40].copy()
    x[[33, 35], 5] = bad
    message = r"must be finite.*Received: NaN or infinity in 2 rows of a batch, .* row 33"
    with pytest.raises(ValueError, match=message):
        digits_model.posterior_predictive(x, 4, batch_size=16)


ERRORS = [
    ({"num_samples": 0}, "`num_samples` must be a whole number of at least 1"),
    (
        {"batch_size": 0},
        "`batch_size` must be a whole number .* Received: batch_size=0",
    ),
    ({"x": [[0.0] * 64]}, "`x` must be an array with a batch axis"),
    ({"reduce": "mean"}, "`reduce` must be None or 'moments'. Received: reduce='mean'"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_say_what_to_do(digits, digits_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        digits_model.posterior_predictive(**{"x": digits[2][:4], **arguments})


def test_endless_input_is_refused(digits, digits_model):
    data = tf.data.Dataset.from_tensors(digits[2][:4]).repeat()
    with pytest.raises(ValueError, match=r"must be finite.* without an end"):
        digits_model.posterior_predictive(data)


def test_empty_input_is_refused(digits, digits_model):
    with pytest.raises(ValueError, match="holds no examples"):
        digits_model.posterior_predictive(digits[2][:0])


@pytest.fixture(scope="module")
def bali_model(digits):
    """A BALI net after two epochs on the digits; tests must not train it further."""
    keras.utils.set_random_seed(1)
    model = net(64, (32,), 10, "categorical", "relu")
    model.compile()
    model.fit(digits[0], digits[1], batch_size=64, epochs=2, verbose=0)
    return model


CLIENT = """
import json, sys
sys.modules["tfp_rank1"] = sys.modules["bali_keras"] = None
sys.modules["tensorflow_probability"] = sys.modules["tf_keras"] = None
import numpy as np, tensorflow as tf

def ask(folder, seed):
    served = tf.saved_model.load(folder + "/served")
    x = tf.constant(np.load(folder + "/x.npy"))
    a, b = (served.samples(x, 6).numpy() for _ in range(2))
    c, d = (served.samples(x, 7, seed).numpy() for _ in range(2))
    return {
        "answers": {k: v.numpy().tolist() for k, v in served.serve(x).items()},
        "signature": {
            k: list(v.shape)
            for k, v in served.signatures["serving_default"].structured_outputs.items()
        },
        "shape": a.shape,
        "differ": not np.array_equal(a, b),
        "repeat": np.array_equal(c, d),
        "samples": c.tolist(),
        "one": {k: list(v.shape) for k, v in served.serve(x[:1]).items()},
    }

seed = tf.constant(json.loads(sys.argv[1]))
print(json.dumps({folder: ask(folder, seed) for folder in sys.argv[2:]}))
"""
SEED = 3


@pytest.fixture(scope="module")
def exported(digits, digits_model, bali_model, regression_model, tmp_path_factory):
    """Models, inputs, and what one process without our packages and TFP gets of each, by name."""
    folder = tmp_path_factory.mktemp("exported")
    line = np.linspace(-1, 1, 9, dtype="float32")[:, np.newaxis]
    cases = {
        "classifier": (digits_model, digits[2][:30], 64),
        "bali": (bali_model, digits[2][:30], 512),
        "regressor": (regression_model, line, 256),
    }
    for name, (model, x, num_samples) in cases.items():
        model.export_predictive(str(folder / name / "served"), num_samples=num_samples)
        np.save(folder / name / "x.npy", x)
    seed = r1.random.fold_in(r1.random.make_seed(SEED), 0)  # that of the first batch
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(np.array(seed).tolist()), *cases],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    told = json.loads(result.stdout.splitlines()[-1])
    return {name: (*cases[name][:2], told[name]) for name in cases}


@pytest.mark.parametrize("name", ["classifier", "bali", "regressor"])
def test_exported_samples_are_those_of_the_model(name, exported):
    """In a clean process, with a seed; without one they are new every time."""
    model, x, told = exported[name]
    assert told["differ"]
    assert told["repeat"]
    expected = model.posterior_predictive(x, num_samples=7, seed=SEED).samples
    np.testing.assert_allclose(told["samples"], expected, rtol=1e-5, atol=1e-5)
    assert told["shape"] == [6, *expected.shape[1:]]


def test_exported_classifiers_answer_in_a_clean_process(exported):
    for name in ("classifier", "bali"):
        _, x, told = exported[name]
        assert told["one"] == {"probs": [1, 10], "entropy": [1], "mutual_information": [1]}
        assert set(told["signature"]) == {"probs", "entropy", "mutual_information"}
        np.testing.assert_allclose(np.sum(told["answers"]["probs"], axis=1), 1.0, rtol=1e-5)
        assert np.shape(told["answers"]["mutual_information"]) == (len(x),)
    model, x, told = exported["classifier"]
    p = model.posterior_predictive(x, num_samples=512)
    error = np.asarray(tf.math.reduce_std(tf.nn.softmax(p.samples), axis=0)) * np.sqrt(1 / 64)
    assert np.all(np.abs(told["answers"]["probs"] - p.mean()) < 5 * error + 1e-4)
    np.testing.assert_allclose(told["answers"]["entropy"], p.entropy(), atol=0.15)


def test_an_exported_bali_classifier_answers_in_a_clean_process(exported):
    """Its probabilities have few samples far from the mean, for which Bernstein's bound holds."""
    model, x, told = exported["bali"]
    p = model.posterior_predictive(x, num_samples=4096)
    variance = np.asarray(tf.math.reduce_variance(tf.nn.softmax(p.samples), axis=0))
    z = 16 / 512  # of 512 samples, one in e^16 / 2 means is further away
    bound = z / 3 + np.sqrt((z / 3) ** 2 + 2 * z * variance)
    assert np.all(np.abs(told["answers"]["probs"] - p.mean()) < bound)


def test_an_exported_regressor_answers_in_a_clean_process(exported):
    model, x, told = exported["regressor"]
    p, answers = model.posterior_predictive(x, num_samples=2048), told["answers"]
    error = np.asarray(tf.sqrt(p.epistemic_variance() / 256))
    assert np.all(np.abs(answers["mean"] - p.mean()) < 5 * error + 1e-4)
    np.testing.assert_allclose(answers["variance"], p.variance(), rtol=0.3)
    np.testing.assert_allclose(answers["aleatoric_variance"], p.aleatoric_variance(), rtol=1e-4)


def test_export_of_a_seeded_process_does_not_repeat_itself(digits, digits_model, tmp_path):
    """Two loads of the same file give different samples, whatever the exporter's global seed."""
    digits_model.export_predictive(str(tmp_path / "served"))
    first, second = (tf.saved_model.load(str(tmp_path / "served")) for _ in range(2))
    x = digits[2][:3]
    assert not np.array_equal(first.samples(x, 4), second.samples(x, 4))


def test_subclassed_model_needs_a_signature(tmp_path):
    class Net(r1.BayesianModel):
        def __init__(self):
            super().__init__(likelihood=r1.likelihoods.Normal(0.1))
            self.dense = r1.layers.DenseRank1(1)

        def call(self, inputs):
            return self.likelihood(self.dense(inputs))

    model = Net()
    x = np.ones((4, 2), "float32")
    model(x)
    with pytest.raises(ValueError, match=r"input_signature=tf\.TensorSpec"):
        model.export_predictive(str(tmp_path / "served"))
    model.export_predictive(str(tmp_path / "served"), 4, tf.TensorSpec([None, 2]))
    served = tf.saved_model.load(str(tmp_path / "served"))
    assert served.samples(x, 3).shape == (3, 4, 1)
    with pytest.raises(ValueError, match="`num_samples` must be a whole number"):
        model.export_predictive(str(tmp_path / "served"), 0)


def test_seed_scope_nests_and_ends():
    generator = keras.random.SeedGenerator(0)
    with r1.random.seed_scope(r1.random.make_seed(1)):
        outer = np.asarray(r1.random.next_seed(generator))
        with r1.random.seed_scope(r1.random.make_seed(2)):
            inner = np.asarray(r1.random.next_seed(generator))
        second = np.asarray(r1.random.next_seed(generator))
    assert len({tuple(outer), tuple(inner), tuple(second)}) == 3
    with r1.random.seed_scope(r1.random.make_seed(1)):
        np.testing.assert_array_equal(r1.random.next_seed(generator), outer)
    before = np.asarray(generator.state)
    r1.random.next_seed(generator)
    assert not np.array_equal(generator.state, before)
    seeds = {tuple(np.asarray(r1.random.make_seed(n))) for n in (0, 1, -1, 2**31, 2**40)}
    assert len(seeds) == 5
