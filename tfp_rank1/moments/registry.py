"""Rules by layer class, and how moments pass through a layer or a whole graph."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tfp_rank1 import scopes
from tfp_rank1.keras_internals import layers_of, mask_of, run_graph, runs_its_graph, set_mask
from tfp_rank1.layers.randomness import is_random
from tfp_rank1.moments.carrier import Moments

__all__ = [
    "WAY_OUT",
    "Rule",
    "drawn",
    "exact",
    "has_rule",
    "is_noisy",
    "propagate",
    "register",
    "register_for_exact",
    "version",
]

# `rule(layer, *args, **kwargs)`: the arguments of the layer's call, with moments for tensors.
Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)

_rules: dict[type, Rule] = {}
# Classes whose rules also see inputs that are known exactly.
_for_exact: set[type] = set()
_changes: list[int] = []

WAY_OUT = "ask for samples: method='samples', or compile(evaluation_method='samples')"


def register(*classes: type) -> Callable[[R], R]:
    """Teach moments a class of layers, as a decorator; a later rule replaces an earlier one.

    The rule is called as `rule(layer, inputs, ...)`, with the arguments of the layer's `call` and
    `Moments` in place of tensors, and returns `Moments`. Masks are in `inputs.mask`, and `training`
    is no argument: answers call a net with training=False, which Keras passes on to every layer of
    a graph. It computes in the dtype of its inputs, whatever the layer's dtype policy. Subclasses
    that keep `call` have the same rule.

    Args:
        *classes: classes of layers, or of operations of Keras.

    Returns:
        A decorator that returns the rule itself.

    Example:
    ```python
    @r1.moments.register(MyScale)
    def scale(layer, x):
        return r1.moments.Moments(layer.factor * x.mean, layer.factor**2 * x.variance_or_zeros())
    ```
    """

    def decorate(rule: R) -> R:
        for cls in classes:
            _rules[cls] = rule
        _changes.append(len(_changes))
        return rule

    return decorate


def version() -> int:
    """A number that changes with every `register`: compiled answers hold the rules as they were."""
    return len(_changes)


def register_for_exact(*classes: type) -> Callable[[R], R]:
    """As `register`, for a rule that also takes inputs which are known exactly.

    Elsewhere Keras computes the outputs for those, and what the rule knows besides is lost.
    """

    def decorate(rule: R) -> R:
        _for_exact.update(classes)
        return register(*classes)(rule)

    return decorate


def _rule_of(operation: Any) -> Rule | None:
    """The rule of an operation's class, or of the class that its `call` comes from."""
    call = type(operation).call
    for cls in type(operation).__mro__:
        # A subclass with a `call` of its own computes something else.
        if getattr(cls, "call", None) is not call:
            return None
        if cls in _rules:
            return _rules[cls]
    return None


def has_rule(operation: Any) -> bool:
    """Whether moments can pass through a layer or an operation of Keras."""
    return _rule_of(_within(operation)) is not None


def _within(operation: Any) -> Any:
    """What an operation stands for: layers that only call another one say which."""
    return getattr(operation, "moments_of", operation)


def propagate(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """The moments of the outputs of a layer, a Functional model or an operation of Keras.

    What has no variance on its way in, and meets nothing random, is computed as Keras does it.

    Args:
        operation: the layer, model or operation.
        *args: arguments of its call, with `Moments` for tensors.
        **kwargs: as `args`.

    Raises:
        ValueError: for a layer without a rule.
    """
    operation = _within(operation)
    given = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Moments)]
    is_exact = all(v.is_exact for v in given) and not is_noisy(operation)
    if is_exact and type(operation) not in _for_exact:
        return _computed(operation, args, kwargs)
    args, kwargs = _without_defaults(operation, args, kwargs)
    if runs_its_graph(operation):  # a nested model
        return run_graph(operation, args, lambda inner: functools.partial(propagate, inner))
    rule = _rule_of(operation)
    if rule is None:
        raise ValueError(_no_rule(operation))
    return _masked(operation, rule(operation, *args, **kwargs), args)


def _no_rule(operation: Any) -> str:
    name = type(operation).__name__
    if isinstance(operation, keras.layers.Layer):
        teach = f"Teach it one by tfp_rank1.moments.register({name})"
    else:
        teach = "Put it into a layer of your own and teach that by tfp_rank1.moments.register"
    return (
        f"Moments cannot pass through {name} {operation.name!r}, which has no rule. {teach}, or "
        f"{WAY_OUT}. Received: {operation.name!r} behind something random"
    )


def drawn(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Outputs of an operation as it draws them; their moments where inputs are random already."""
    given = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Moments)]
    if all(v.is_exact for v in given):
        return _computed(operation, args, kwargs)
    return propagate(operation, *args, **kwargs)


def _without_defaults(
    operation: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The arguments of a rule: a mask goes with the inputs, and `training` is left out.

    Keras notes both in its graphs, whether a user gave them or not.
    """
    if not args and kwargs:  # a layer that was called by name: layer(inputs=h)
        names = [n for n in inspect.signature(operation.call).parameters if n in kwargs][:1]
        args = tuple(kwargs[name] for name in names)
        kwargs = {name: value for name, value in kwargs.items() if name not in names}
    mask = kwargs.get("mask")
    if isinstance(mask, Moments) and isinstance(args[0], Moments):
        args = (dataclasses.replace(args[0], mask=mask.mean), *args[1:])
    kept = {name: value for name, value in kwargs.items() if name not in ("mask", "training")}
    return args, kept


def is_noisy(operation: Any) -> bool:
    """Whether a layer, or a layer in it, draws in prediction."""
    is_layer = isinstance(operation, keras.layers.Layer)
    return is_layer and not scopes.mean_mode.value and is_random(layers_of(operation))


def _computed(operation: Any, args: Any, kwargs: Any) -> Any:
    """Outputs that are known exactly, by the layer's own call."""

    def tensor(value: Any) -> Any:
        if not isinstance(value, Moments):
            return value
        if value.mask is not None:
            set_mask(value.mean, value.mask)
        return value.mean

    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    args, kwargs = keras.tree.map_structure(tensor, (args, kwargs))
    return keras.tree.map_structure(exact, operation(*args, **kwargs))


def exact(tensor: Any) -> Moments:
    """A tensor as moments, in float32 at least: half precision cannot hold small variances."""
    mask, tensor = mask_of(tensor), tf.convert_to_tensor(tensor)
    is_half = tensor.dtype in (tf.float16, tf.bfloat16)
    return Moments(tf.cast(tensor, tf.float32) if is_half else tensor, None, mask)


def _masked(operation: Any, outputs: Any, args: Any) -> Any:
    """The outputs of a rule with the mask that the layer would have passed on."""
    masks = [v.mask for v in keras.tree.flatten(args) if isinstance(v, Moments)]
    if all(mask is None for mask in masks) or not getattr(operation, "supports_masking", False):
        return outputs

    def part(value: Any, name: str) -> Any:
        return getattr(value, name) if isinstance(value, Moments) else value

    inputs = keras.tree.map_structure(lambda v: part(v, "mean"), args[0])
    before = keras.tree.map_structure(lambda v: part(v, "mask"), args[0])
    after = keras.tree.flatten(operation.compute_mask(inputs, before))
    flat = keras.tree.flatten(outputs)
    after += [None] * (len(flat) - len(after))
    new = [dataclasses.replace(v, mask=mask) for v, mask in zip(flat, after, strict=False)]
    return keras.tree.pack_sequence_as(outputs, new)
