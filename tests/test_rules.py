"""Rules of the code base that a reader relies on, checked on the source."""

import ast
import importlib
import pathlib
import pkgutil

import keras
import pytest

import bali_keras
import tfp_rank1 as r1
from tfp_rank1 import keras_internals

PACKAGES = (r1, bali_keras)
DOOR = "tfp_rank1.keras_internals"
# The public methods of named tuples begin with an underscore.
NAMED_TUPLE = {"_replace", "_asdict", "_make", "_fields"}
FAMILIES = {
    r1.likelihoods.Likelihood: "tfp_rank1.likelihoods",
    r1.posteriors.Posterior: "tfp_rank1.posteriors",
    r1.priors.Prior: "tfp_rank1.priors",
}


def modules():
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield found.name


def tree_of(name):
    return ast.parse(pathlib.Path(importlib.util.find_spec(name).origin).read_text())


TREES = {name: tree_of(name) for name in modules()}


def places(name, nodes):
    return [f"{name}:{node.lineno}" for node in nodes]


def private_names(tree):
    """Underscore names that code reads or writes on objects, also by `getattr` and its like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        elif isinstance(node, ast.FunctionDef):
            name = node.name  # overriding a method of Keras is using its name
        elif isinstance(node, ast.JoinedStr) and is_private_prefix(node.values[0]):
            yield ast.unparse(node), node  # a name that is put together
            continue
        else:
            continue
        is_private = name.startswith("_") and not name.startswith("__") and name != "_"
        if is_private and name.isidentifier() and name not in NAMED_TUPLE:
            yield name, node


def is_private_prefix(part):
    return isinstance(part, ast.Constant) and str(part.value).startswith("_")


def defined_here():
    """Underscore names that the packages give to things of their own."""
    names = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def names_of_keras():
    """Private names of the objects of Keras that the packages meet."""
    inputs = keras.Input((3, 2))
    layers = keras.layers
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    parts = [
        model,
        inputs,
        inputs._keras_history.operation._inbound_nodes[0],
        keras.Sequential([keras.Input((2,)), layers.Dense(1)]),
        *(kind(2, 2) for kind in (layers.Conv1D, layers.Embedding, layers.MultiHeadAttention)),
        *(kind(2) for kind in (layers.LSTM, layers.GRU, layers.LSTMCell, layers.GRUCell)),
        layers.TimeDistributed(layers.Dense(1)),
        layers.Bidirectional(layers.LSTM(1)),
        layers.BatchNormalization(),
        keras.metrics.AUC(),
        keras.metrics.BinaryAccuracy(),
        keras.optimizers.Adam(),
        keras.losses.MeanSquaredError(),
    ]
    return {name for part in parts for name in dir(part) if not name.startswith("__")}


def test_private_names_of_keras_stay_behind_one_door():
    foreign, own, found = names_of_keras(), defined_here(), []
    # What the packages put on Keras objects of their own is in `dir` of none of those above.
    for name, tree in TREES.items():
        if name == DOOR:
            continue
        for private, node in private_names(tree):
            is_attribute = isinstance(node, ast.Attribute)
            is_joined = isinstance(node, ast.JoinedStr)
            if private in foreign or is_joined or (is_attribute and private not in own):
                found.append(f"{name}:{node.lineno} {private}")
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            if any(n.startswith(("keras.src", "tensorflow.python", "tf.python")) for n in names):
                found.append(f"{name}:{node.lineno} {names}")
    assert not sorted(found), "\n".join(sorted(found))


def test_the_door_opens_to_this_version_of_keras():
    assert keras_internals.missing_names() == []


def test_a_name_that_keras_lost_is_named(monkeypatch):
    owner = next(c for c in keras.layers.Conv1D.__mro__ if "_compute_causal_padding" in vars(c))
    monkeypatch.delattr(owner, "_compute_causal_padding")
    assert keras_internals.missing_names() == ["Conv1D._compute_causal_padding"]


def test_thread_locals_stand_in_one_file():
    found = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [a.name for a in node.names] + [getattr(node, "module", None)]
                if {"threading", "contextvars"} & set(imported) and name != "tfp_rank1.scopes":
                    found.append(name)
    assert not found


def names_in(tree):
    """What a module's names stand for, those imported within functions as well."""
    scope = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = importlib.import_module(node.module)
            for alias in node.names:
                value = getattr(module, alias.name, None)
                scope[alias.asname or alias.name] = value
    return scope


def classes_of(value):
    """The classes that the second argument of `isinstance` stands for."""
    if isinstance(value, type):
        return [value]
    if isinstance(value, tuple):
        return [cls for part in value for cls in classes_of(part)]
    return list(getattr(value, "__args__", []))  # a union


def asked_classes(tree, scope):
    """The expressions by which code asks for a class: isinstance, `type(x) is`, `case Class()`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                yield node, node.args[1]
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):
            if getattr(node.left.func, "id", None) == "type":
                yield from ((node, other) for other in node.comparators)
        elif isinstance(node, ast.MatchClass):
            yield node, node.cls


def test_nobody_asks_which_likelihood_or_family_an_object_is():
    """A check may ask for a base class; what a class can do is an attribute of it."""
    found = []
    for name, tree in TREES.items():
        scope = names_in(tree) | vars(importlib.import_module(name))
        for node, asked in asked_classes(tree, scope):
            try:
                classes = classes_of(eval(ast.unparse(asked), dict(scope)))
            except NameError:  # a local name
                continue
            for cls in classes:
                for base, home in FAMILIES.items():
                    if issubclass(cls, base) and cls != base and not name.startswith(home):
                        found.append(f"{name}:{node.lineno} {cls.__name__}")
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, Categorical | Normal)",
        "isinstance(x, (int, Categorical))",
        "KINDS = (Normal,)\nisinstance(x, KINDS)",
        "def f():\n    from tfp_rank1.likelihoods import Poisson\n    isinstance(x, Poisson)",
        "type(x) is Normal",
        "match x:\n    case Normal():\n        pass",
    ],
)
def test_the_ways_to_ask_are_seen(code):
    tree = ast.parse(f"from tfp_rank1.likelihoods import Categorical, Normal\n{code}")
    scope = names_in(tree)
    scope["KINDS"] = (r1.likelihoods.Normal,)
    asked = [classes_of(eval(ast.unparse(e), dict(scope))) for _, e in asked_classes(tree, scope)]
    likelihood = r1.likelihoods.Likelihood
    assert any(issubclass(cls, likelihood) for classes in asked for cls in classes)


def test_bali_uses_public_names_only():
    found = []
    for name, tree in TREES.items():
        if not name.startswith("bali_keras"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):  # by name alone, so that `__all__` can be asked
                found += [f"{name}:{node.lineno}" for a in node.names if "tfp_rank1." in a.name]
            if not isinstance(node, ast.ImportFrom) or not node.module.startswith("tfp_rank1"):
                continue
            public = importlib.import_module(node.module).__all__
            hidden = [a.name for a in node.names if a.name not in public or a.name[0] == "_"]
            if hidden or "._" in node.module:
                found.append(f"{name}:{node.lineno} {node.module} {hidden}")
    assert not found


def test_the_model_is_one_class_and_its_replicas():
    for cls, own in ((r1.BayesianModel, 2), (bali_keras.BaliModel, 3)):
        before = cls.__mro__[: cls.__mro__.index(keras.Model)]
        assert [c.__module__.split(".")[0] in ("tfp_rank1", "bali_keras") for c in before] == [
            True
        ] * own


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_what_all_names_is_there(package):
    for name in (m for m in TREES if m.startswith(package.__name__)):
        module = importlib.import_module(name)
        missing = [n for n in getattr(module, "__all__", []) if not hasattr(module, n)]
        assert not missing, name
