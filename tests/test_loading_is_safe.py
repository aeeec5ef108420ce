"""Files and configurations from elsewhere: they build layers or fail, and run nothing."""

import json
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_case import INPUTS, METHODS, train_briefly

import bali_keras as bk
import tfp_rank1 as r1


@pytest.fixture(scope="module", params=["bali", "rank1_normal"])
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    train_briefly(METHODS[request.param]()).save(path)
    return path


def rewritten(path, change):
    """A copy of a `.keras` file whose configuration went through `change`."""
    target = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(name, content)
    return target


def objects(node):
    """All serialized objects in a configuration."""
    if isinstance(node, dict):
        if "class_name" in node and "config" in node:
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


def test_safe_mode_is_enough(saved):
    model = keras.models.load_model(saved, safe_mode=True)
    x = np.ones((2, INPUTS), "float32")
    with r1.posterior_mean():
        np.testing.assert_array_equal(model(x), keras.models.load_model(saved)(x))


# Serialized objects that would run `touch marker`, by the place of the marker, if they were called.
HOSTILE = {
    "system": lambda marker: {
        "module": "os", "class_name": "system", "config": {"command": f"touch {marker}"},
    },
    "function": lambda marker: {"module": "os", "class_name": "function", "config": "system"},
    "process": lambda marker: {
        "module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", str(marker)]},
    },
    "eval": lambda marker: {
        "module": "builtins", "class_name": "eval", "config": {"source": f"touch {marker}"},
    },
    "lambda": lambda marker: {
        "class_name": "__lambda__", "config": {"value": "4wAAAA==", "defaults": None},
    },
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_objects_are_refused(hostile, saved, tmp_path):
    """In the place of every object of a saved model, and wherever a config is taken."""
    marker = tmp_path / "marker"
    bad = hostile(marker)
    takers = (
        r1.priors.get, r1.posteriors.get, r1.likelihoods.get, bk.schedules.get,
        lambda config: r1.layers.DenseRank1(2, ensemble_size=2, prior=config),
        lambda config: bk.layers.DenseBali.from_config({"units": 2, "activation": config}),
    )  # fmt: skip
    for take in takers:
        with pytest.raises((ValueError, TypeError)):
            take(bad)
    config = json.loads(zipfile.ZipFile(saved).read("config.json"))
    for place in range(len(list(objects(config)))):

        def change(config, place=place):
            node = list(objects(config))[place]
            node.clear()
            node.update(bad)
            return config

        path = rewritten(saved, change)
        try:
            keras.models.load_model(path)
        except Exception as error:
            assert not isinstance(error, (SystemError, MemoryError))
    assert not marker.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["units", "prior", "posterior", "ensemble_size", "sampling", "seed"]),
    value=json_values,
)
def test_any_value_builds_a_layer_or_is_named(name, value):
    """A malformed argument ends in an exception of Python's own kind, at once."""
    config = r1.layers.DenseRank1(2, ensemble_size=2).get_config()
    config[name] = value
    try:
        layer = r1.layers.DenseRank1.from_config(config)
    except (ValueError, TypeError):
        return
    assert layer.get_config()["units"] == layer.units


@pytest.mark.parametrize("count", [np.nan, np.inf, -3.0])
def test_a_wrong_number_of_examples_is_refused(count):
    model = METHODS["rank1"]()
    store = {}
    model.save_own_variables(store)
    with pytest.raises(ValueError, match="num_train_examples"):
        model.load_own_variables(store | {"num_train_examples": np.float64(count)})
