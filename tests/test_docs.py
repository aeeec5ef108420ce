"""Every public name is documented, and the README's Python runs."""

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import bali_keras
import tfp_rank1 as r1
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.rank1 import ARGUMENTS

MODULES = [
    *(r1, r1.layers, r1.metrics, r1.posteriors, r1.priors, r1.likelihoods, r1.losses, r1.models),
    *(r1.callbacks, r1.plots, r1.random, r1.initializers, r1.recipes, bali_keras),
    *(bali_keras.layers, bali_keras.matrix_normal, bali_keras.schedules, bali_keras.recording),
]


def public_members(module):
    for name, value in vars(module).items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith(
            ("tfp_rank1", "bali_keras")
        ):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_are_documented(module):
    members, bare = dict(public_members(module)), []
    assert members
    for name, member in members.items():
        parts = {name: member}
        if inspect.isclass(member):
            for attribute, value in vars(member).items():
                if not attribute.startswith("_") and inspect.isfunction(value):
                    parts[f"{name}.{attribute}"] = getattr(member, attribute)
        bare += [where for where, part in parts.items() if not inspect.getdoc(part)]
    assert not bare


def rank1_layers():
    """Layers with factors; `TimeDistributedRank1` only has a layer with factors within."""
    classes = {name: getattr(r1.layers, name) for name in r1.layers.__all__}
    return {
        name: cls
        for name, cls in classes.items()
        if name.endswith("Rank1") and cls is not r1.layers.TimeDistributedRank1
    }


def test_rank1_layers_have_every_section():
    """Sections that a class writes and sections from the template; no placeholder is left."""
    for name, cls in rank1_layers().items():
        text = inspect.getdoc(cls)
        assert "{{" not in text, name
        assert all(len(line) <= 100 for line in text.splitlines()), name
        for section in ("Args", "Input shape", "Output shape", "Raises", "Example", "Source"):
            assert len(re.findall(f"^{section}:", text, flags=re.MULTILINE)) == 1, (name, section)
        assert " o " in text, name  # an equation with factors
        assert f"`keras.layers.{name.removesuffix('Rank1')}`" in text, name
        assert all(f"`{argument}`" in text for argument in ARGUMENTS), name


def test_the_docstring_template():
    class DenseRank1:
        """A layer.

        Args:
            {{rank1_arguments}}
                More of it.
        """

    lines = fill_docstring(DenseRank1).__doc__.splitlines()
    assert lines[:3] == ["A layer.", "", "Args:"]
    assert lines[3].startswith("    **kwargs: every argument of `keras.layers.Dense`")
    assert lines[4].startswith("        `tfp_rank1.layers.Rank1Mixin`")
    assert lines[-1] == "        More of it."
    DenseRank1.__doc__ = None  # as under python -OO
    assert fill_docstring(DenseRank1).__doc__ is None
    DenseRank1.__doc__ = "{{unknown}}"
    with pytest.raises(KeyError, match="unknown"):
        fill_docstring(DenseRank1)


def small_resnet():
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs)))
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(h))
    return keras.Model(inputs, outputs)


def test_readme_code_runs(tmp_path, monkeypatch, digits):
    """The Python blocks of the README, one after the other, on the digits."""
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.exists():
        pytest.skip("no README beside the tests: they run against an installed wheel")
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    # A small net in the place of one whose weights would be downloaded.
    monkeypatch.setattr(keras.applications, "ResNet50", small_resnet)
    namespace = {"x": digits[0], "y": digits[1], "x_test": digits[2], "y_test": digits[3]}
    namespace |= {"images": np.zeros((8, 8, 8, 3), "float32"), "labels": np.arange(8) % 3}
    for block in blocks:
        exec(compile(block.replace("epochs=20", "epochs=1"), "README.md", "exec"), namespace)
