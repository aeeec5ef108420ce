"""Stateless seeds: distinct on every call and replica, or governed by one given seed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import scopes
from tfp_rank1.keras_internals import graph_of

__all__ = [
    "SeedSource",
    "SharedDraws",
    "as_drawn",
    "coins",
    "draw_scope",
    "entropy_seed",
    "fold_in",
    "load_seed_state",
    "make_seed",
    "next_seed",
    "normal",
    "normal_rows",
    "save_seed_state",
    "seed_scope",
    "shared_seed",
]

_INT32_MAX = 2**31 - 1


def draw_scope() -> contextlib.AbstractContextManager[Any]:
    """Where draws are computed: outside of the graph under construction if they are constants."""
    return tf.init_scope() if scopes.constant_draws.value else contextlib.nullcontext()


def as_drawn(value: tf.Tensor) -> tf.Tensor:
    """A draw for the graph under construction; one made outside of it becomes a constant there."""
    if not scopes.constant_draws.value or tf.executing_eagerly():
        return value
    # Captured as it is, it would be one more input of the exported file.
    return tf.constant(value.numpy(), value.dtype)


class SeedSource:
    """Seeds that follow from one seed: the n-th is `fold_in(seed, n)`.

    Args:
        seed: int32 tensor of shape `[2]`.
    """

    def __init__(self, seed: tf.Tensor) -> None:
        with draw_scope():
            self._seed = tf.convert_to_tensor(seed, tf.int32)
        self._draws = 0  # a Python number: a traced graph holds the number of each draw

    def next(self) -> tf.Tensor:
        """The next seed, int32 `[2]`."""
        seed = fold_in(self._seed, self._draws)
        self._draws += 1
        return seed


class SharedDraws:
    """Draws that all examples of one pass share, one of P passes.

    The normal numbers of the P passes have mean 0 and variance 1 exactly, entry by entry: a mean
    over the passes is right to first order, and P = 16 are as good as 32 independent passes.

    Args:
        seed: int32 `[2]`, the same for all passes.
        index: number of the pass, from 0, int32 scalar.
        num_passes: P.
    """

    # Below this number two moments would be all that is left; above that size a table takes too
    # much memory.
    _FEWEST, _LARGEST = 4, 2**22

    def __init__(self, seed: tf.Tensor, index: int | tf.Tensor, num_passes: int) -> None:
        with draw_scope():
            self._seed = tf.convert_to_tensor(seed)
        self._index, self._num_passes = index, num_passes
        self._draws = 0  # a Python number: a traced graph holds the number of each draw

    def normal(self, shape: tuple[int, ...]) -> tf.Tensor:
        """Standard normal numbers of this pass, float32.

        Args:
            shape: static dimensions.
        """
        self._draws += 1
        with draw_scope():
            found = self._normal(shape)
        return as_drawn(found)

    def _normal(self, shape: tuple[int, ...]) -> tf.Tensor:
        is_large = self._num_passes * math.prod(shape) > self._LARGEST
        if self._num_passes < self._FEWEST or is_large:
            return normal(shape, fold_in(fold_in(self._seed, self._draws), self._index))
        with graph_of(self._seed):  # once for all passes, where passes are iterations of a loop
            table = normal((self._num_passes, *shape), fold_in(self._seed, self._draws))
            table -= tf.reduce_mean(table, axis=0)
            table *= tf.math.rsqrt(tf.reduce_mean(tf.square(table), axis=0))
        return tf.gather(table, self._index)


@contextlib.contextmanager
def seed_scope(seed: tf.Tensor) -> Iterator[None]:
    """Inside the scope every draw of every layer is a pure function of `seed`.

    The n-th call of `next_seed` follows from `fold_in(seed, n)` and leaves the generators' states
    alone. A graph that is traced inside the scope therefore reads no random state at all, so that
    it is reproducible, safe to call from several threads, and exportable.

    Args:
        seed: int32 tensor of shape `[2]`.

    Example:
    ```python
    with r1.random.seed_scope(r1.random.make_seed(0)):
        outputs = model(x)      # the same numbers every time
    ```
    """
    with scopes.seed_source.set(SeedSource(seed)):
        yield


def make_seed(seed: int) -> tf.Tensor:
    """A Python integer as a stateless seed, int32 `[2]`.

    Integers of a magnitude below 2^61 give distinct seeds.
    """
    high, low = divmod(abs(int(seed)), 2**31)
    return tf.constant([low, (2 * high + (seed < 0)) % 2**31], tf.int32)


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """The next stateless seed, int32 `[2]`: advances `generator`, or follows the seed scope.

    Inside `tf.distribute` replicas the id of the replica is folded in: the generator's state is
    mirrored, so without it every replica would draw the same sample. Draws that all examples share
    are the same on all replicas.

    Args:
        generator: the layer's own `keras.random.SeedGenerator`.
    """
    seed = shared_seed(generator)
    replica = tf.distribute.get_replica_context()
    is_one_of_many = replica is not None and replica.num_replicas_in_sync > 1
    if is_one_of_many and scopes.shared_draws.value is None:
        seed = fold_in(seed, replica.replica_id_in_sync_group)
    return seed


def shared_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """As `next_seed`, but the same on every replica, for draws by row as in `normal_rows`."""
    source = scopes.seed_source.value
    if source is not None:
        return source.next()
    # The generator's state is int64 and TFP takes int32 seeds.
    return tf.cast(tf.math.floormod(generator.next(), _INT32_MAX - 1), tf.int32)


def save_seed_state(generator: keras.random.SeedGenerator, store: Any) -> None:
    """Put the generator's state into a Keras weight store, which does not hold it by itself."""
    store["seed_state"] = generator.state


def load_seed_state(generator: keras.random.SeedGenerator, store: Any) -> dict[str, Any]:
    """Restore the generator's state if the store holds it.

    Returns:
        All other entries of the store.
    """
    arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118  not a dict
    state = arrays.pop("seed_state", None)
    if state is not None:
        generator.state.assign(state)
    return arrays


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """A seed that depends on `seed` and on the integer `data`."""
    with draw_scope():
        folded = tf.concat([_integers([1], seed), [tf.cast(data, tf.int32)]], axis=0)
        # Without the sign bit, which XLA would extend: all later seeds would differ there.
        return tf.bitwise.bitwise_and(folded, _INT32_MAX)


def _integers(shape: Any, seed: tf.Tensor, skipped: tf.Tensor | None = None) -> tf.Tensor:
    """Random int32 over all 2^32 values, by the Philox generator, from its block `skipped` on.

    Args:
        shape: of the result.
        seed: int32 `[2]`.
        skipped: number of blocks, four integers each, to skip; uint64 scalar. Defaults to None: 0.
    """
    # The algorithm is named, as the one that TensorFlow selects differs under XLA. These are the
    # bare operations: TensorFlow's function around them adds forty others to every graph.
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    if skipped is not None:
        counter += tf.stack([skipped, tf.zeros_like(skipped)])
    philox = tf.constant(1)
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=key, counter=counter, alg=philox, dtype=tf.int32
    )


def normal(shape: tuple[int | tf.Tensor, ...], seed: tf.Tensor) -> tf.Tensor:
    """Independent standard normal numbers, float32, by the transform of Box and Muller.

        z = sqrt(-2 log u) (cos 2 pi v, sin 2 pi v),   u, v uniform on 2^16 midpoints of (0, 1)

    One random integer makes two numbers, by operations on whole tensors. On a CPU that takes half
    the time of `tf.random.stateless_normal`, which takes as long as the matrix product of a dense
    layer. The largest number is 4.85 (an exact normal number exceeds it once in 800,000 draws).

    Args:
        shape: dimensions, static or scalar tensors.
        seed: int32 `[2]`.
    """
    count = tf.reduce_prod(tf.stack(shape))
    pairs = (count + 1) // 2
    bits = _integers(tf.stack([1, pairs]), seed)
    return tf.reshape(_box_muller(bits)[0, :count], shape)


def coins(shape: tuple[int | tf.Tensor, ...], seed: tf.Tensor) -> tf.Tensor:
    """Independent tosses of a fair coin, -1 or 0, float32: one random bit each.

    Args:
        shape: dimensions, static or scalar tensors.
        seed: int32 `[2]`.
    """
    *rows, width = shape
    # Whole words for every row where they fit, as a slice would copy all of them.
    fits = isinstance(width, int) and width % 32 == 0
    count = tf.reduce_prod(tf.stack(shape))
    words = _integers(tf.stack([(count + 31) // 32, 1]), seed)
    # Every bit in turn comes to the front, and then fills the integer: 0 or -1.
    bits = tf.bitwise.right_shift(tf.bitwise.left_shift(words, tf.range(32)), 31)
    flat = tf.cast(bits, tf.float32)
    if not fits:
        flat = tf.reshape(flat, [-1])[:count]
    return tf.reshape(flat, (*rows, width))


def normal_rows(first_row: int | tf.Tensor, shape: tuple[Any, ...], seed: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers `[rows, ...]` in which a row depends on the seed and its index only.

    The result is rows `first_row, first_row + 1, ...` of one endless table. Replicas that hold
    different rows of a batch therefore draw the same numbers as one device that holds all rows;
    and eager execution, graphs and XLA draw the same numbers. The Philox generator makes this
    cheap: it turns any counter into four random integers without computing earlier ones.

    Args:
        first_row: index of the first row in the table.
        shape: `(rows, ...)`, numbers or scalar tensors.
        seed: int32 `[2]`.
    """
    rows, rest = shape[0], shape[1:]
    is_static = all(isinstance(size, int) for size in rest)
    width = math.prod(rest) if is_static else tf.reduce_prod(tf.stack(rest))
    # A counter makes four integers, an integer two numbers.
    blocks = max(1, -(-width // 8)) if is_static else tf.maximum(1, (width + 7) // 8)
    start = tf.cast(first_row, tf.uint64) * tf.cast(blocks, tf.uint64)
    bits = _integers(tf.stack([rows, blocks * 4]), seed, skipped=start)
    return tf.reshape(_box_muller(bits)[:, :width], shape)


def _box_muller(bits: tf.Tensor) -> tf.Tensor:
    """Normal numbers `[rows, 2 m]` from random int32 `[rows, m]`, each row by itself."""
    rows, count = tf.unstack(tf.shape(bits))
    # The two halves of every integer are u and v. Midpoints keep the logarithm away from 0.
    halves = tf.cast(tf.reshape(tf.bitcast(bits, tf.uint16), [rows, 2, count]), tf.float32)
    radius = tf.sqrt(-2.0 * tf.math.log((halves[:, 0] + 0.5) / 2.0**16))
    angle = (halves[:, 1] + 0.5) * (2.0 * math.pi / 2.0**16)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)


def entropy_seed() -> tf.Tensor:
    """A seed from the operating system, int32 `[2]`, new on every execution, in graphs too."""
    # Unlike `tf.random.uniform`, the raw operation ignores `tf.random.set_seed`: a server that was
    # exported from a seeded training script must not repeat itself.
    return tf.raw_ops.RandomUniformInt(
        shape=[2], minval=0, maxval=tf.constant(_INT32_MAX, tf.int32), seed=0, seed2=0
    )
