"""The axes of raw outputs: members or samples, examples, positions, and the outputs themselves.

Two layouts exist. A model and its metrics have the examples first, answers the samples:

    [B, K, ..., D]      K members of every example; [B, ..., D] from a net without members
    [S, N, ..., D]      S samples for all examples

The dots are axes of positions (pixels, time steps); often there are none. `Outputs` knows where
each axis is; no other module transposes outputs or counts their axes. Whether a net has members is
said by its graph, see `model.graph`, and noted at its likelihood: `Likelihood.has_members`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_rank1.keras_internals import mask_of, set_mask

__all__ = [
    "Outputs",
    "as_members",
    "check_output_shape",
    "join_copies",
    "join_passes",
    "num_members",
    "position_mask",
    "position_sizes",
]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Raw outputs, or any tensor with the same leading axes, and where its axes are.

    Attributes:
        values: `[S, N, ..., D]` or `[N, S, ..., D]`.
        sample_axis: the axis of the samples or members, 0 or 1.
    """

    values: tf.Tensor
    sample_axis: int

    @property
    def num_samples(self) -> int:
        """S, the number of samples or members."""
        return int(self.values.shape[self.sample_axis])

    @property
    def num_outputs(self) -> int:
        """D, the number of raw outputs per example and position."""
        return int(self.values.shape[-1])

    @property
    def num_position_axes(self) -> int:
        """Number of axes of positions, between the two leading axes and the outputs."""
        return int(self.values.shape.rank) - 3

    @property
    def positions(self) -> list[Any]:
        """The size of every axis of positions, a number or, where it is not known, a scalar."""
        return position_sizes(self.values, 2)

    def by_example(self) -> Outputs:
        """These outputs with the examples first, `[N, S, ..., D]`."""
        return self if self.sample_axis == 1 else Outputs(_swap_first_two(self.values), 1)

    def by_sample(self) -> Outputs:
        """These outputs with the samples first, `[S, N, ..., D]`."""
        return self if self.sample_axis == 0 else Outputs(_swap_first_two(self.values), 0)

    def like(self, values: tf.Tensor) -> Outputs:
        """Other values in the same layout."""
        return Outputs(values, self.sample_axis)

    def average(self, values: tf.Tensor) -> tf.Tensor:
        """Mean over the samples of values in this layout, `[N, ...]`."""
        return tf.reduce_mean(values, axis=self.sample_axis)

    def variance(self, values: tf.Tensor) -> tf.Tensor:
        """Variance over the samples (divided by S) of values in this layout, `[N, ...]`."""
        return tf.math.reduce_variance(values, axis=self.sample_axis)

    def logsumexp(self, values: tf.Tensor) -> tf.Tensor:
        """`log sum_s exp(values_s)`, `[N, ...]`."""
        return tf.reduce_logsumexp(values, axis=self.sample_axis)

    def bounds(self, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Minimum and maximum over the samples of values in this layout, `[N, ...]` each."""
        axis = self.sample_axis
        return tf.reduce_min(values, axis=axis), tf.reduce_max(values, axis=axis)

    def for_all_samples(self, values: tf.Tensor) -> tf.Tensor:
        """Values `[N, ...]`, such as targets, with a new axis that broadcasts over the samples."""
        return tf.expand_dims(values, self.sample_axis)

    def sum_positions(self, values: tf.Tensor) -> tf.Tensor:
        """Values in this layout without outputs, summed over positions: `[S, N]` or `[N, S]`."""
        positions = list(range(2, 2 + self.num_position_axes))
        return tf.reduce_sum(values, axis=positions) if positions else values

    def flatten_positions(self) -> Outputs:
        """Positions as examples of their own, `[S, N P, D]` or `[N P, S, D]`."""
        if not self.num_position_axes:
            return self
        by_sample = self.by_sample().values
        shape = [self.num_samples, -1, self.num_outputs]
        flat = Outputs(tf.reshape(by_sample, shape), 0)
        return flat if self.sample_axis == 0 else flat.by_example()

    def gather_samples(self, index: tf.Tensor) -> Outputs:
        """M chosen samples of every example.

        Args:
            index: numbers of the samples, int32 `[N, M]`.

        Returns:
            Outputs `[N, M, ..., D]`.
        """
        return Outputs(tf.gather(self.by_example().values, index, batch_dims=1), 1)

    def spread(self, points: tf.Tensor, stddev: tf.Tensor) -> Outputs:
        """Replace every sample by M samples at `values + stddev * points`.

        Args:
            points: `[M]`.
            stddev: tensor with the shape of `values`.

        Returns:
            Outputs with M S samples: first all samples at the first point, then at the second.
        """
        by_sample, width = self.by_sample().values, self.like(stddev).by_sample().values
        moved = by_sample + width * tf.reshape(points, [-1] + [1] * int(by_sample.shape.rank))
        sizes = [*tf.unstack(tf.shape(by_sample))[1:-1], self.num_outputs]
        joined = Outputs(tf.reshape(moved, [points.shape[0] * self.num_samples, *sizes]), 0)
        return joined if self.sample_axis == 0 else joined.by_example()


def as_members(values: Any, has_members: bool | None = None) -> Outputs:
    """A model's raw outputs, `[B, K, ..., D]`, or `[B, ..., D]` of a net without members.

    Args:
        values: raw outputs.
        has_members: whether axis 1 is that of members. Defaults to None: it is where there are more
            than two axes.

    Raises:
        ValueError: for values of too few axes.
    """
    values = tf.convert_to_tensor(values)
    if not _has_members(values.shape.rank, has_members):
        mask = mask_of(values)
        values = values[:, tf.newaxis]
        if mask is not None:
            set_mask(values, mask[:, tf.newaxis])
    if values.shape.rank < 3:
        raise ValueError(
            "Outputs must have shape [batch, members, ..., outputs] (or [batch, ..., outputs] for "
            "a net without members); end the model with SplitMembers(K). "
            f"Received: outputs of shape {values.shape}"
        )
    return Outputs(values, 1)


def position_sizes(values: tf.Tensor, leading: int) -> list[Any]:
    """Sizes of the axes between the first and the last ones, numbers or scalar tensors.

    Args:
        values: raw outputs.
        leading: number of axes before those of positions.
    """
    static, dynamic = values.shape[leading:-1], tf.shape(values)
    return [dynamic[leading + i] if n is None else int(n) for i, n in enumerate(static)]


def position_mask(values: tf.Tensor, has_members: bool | None = None) -> tf.Tensor | None:
    """Which positions of raw outputs count, boolean `[B, ...]`; None if all do.

    Args:
        values: a model's raw outputs, with the mask that its layers have left.
        has_members: as in `as_members`.
    """
    mask, rank = mask_of(values), int(values.shape.rank)
    leading = 1 + _has_members(rank, has_members)
    if mask is None or rank < leading + 2 or mask.shape.rank <= leading:
        return None  # of the rows of a net without positions
    mask = mask[:, 0] if leading == 2 else mask  # padding is the same for all members
    sizes = position_sizes(values, leading)
    given = mask.shape[1:].as_list()
    fits = len(given) <= len(sizes) and all(
        n is None or not isinstance(size, int) or n == size
        for n, size in zip(given, sizes, strict=False)
    )
    if not fits:
        raise ValueError(
            "The mask that reaches a model's outputs must have the axes of their positions, or the "
            "first of them. Have the layer that changes the positions return a mask that fits, or "
            "None: compute_mask(). "
            f"Received: a mask of shape {mask.shape} for outputs of shape {values.shape}"
        )
    missing = len(sizes) - len(given)
    if not missing:
        return mask
    # A mask of tokens holds for all that is made of a token.
    wide = tf.reshape(mask, tf.concat([tf.shape(mask), tf.ones([missing], tf.int32)], axis=0))
    return tf.broadcast_to(wide, [tf.shape(mask)[0], *sizes])


def num_members(
    output_shape: Sequence[int | None] | tf.TensorShape, has_members: bool | None = None
) -> int:
    """K of a model's outputs `[B, K, ..., D]`; 1 for `[B, ..., D]`, see `as_members`.

    Raises:
        ValueError: for an axis of unknown size, which no `SplitMembers` made.
    """
    if not _has_members(len(output_shape), has_members):
        return 1
    members = output_shape[1]
    if members is None:
        raise ValueError(
            "The axis of members, the second one, has a known number, [batch, members, ..., "
            "outputs]: end the model with SplitMembers(K), or, in a subclassed model without "
            "members, return outputs[:, None]. "
            f"Received: outputs of shape {tuple(output_shape)}"
        )
    return int(members)


def _has_members(rank: int, has_members: bool | None) -> bool:
    return rank > 2 if has_members is None else has_members


def join_passes(values: tf.Tensor, num_passes: int | tf.Tensor, sizes: Sequence[Any]) -> tf.Tensor:
    """Outputs of P passes, `[P, B, K, ..., D]`, as samples `[P K, B, ..., D]`.

    Args:
        values: outputs of all passes.
        num_passes: P; a tensor where a graph learns the number only when it runs.
        sizes: sizes of the axes after the members, `(..., D)`; None where a size is not static.
    """
    # Given by the caller: the shape of `values` comes from a loop and lacks sizes that are known.
    rank, members = 3 + len(sizes), values.shape[2]
    dynamic = tf.unstack(tf.shape(values), num=rank)
    static = [dynamic[3 + i] if size is None else size for i, size in enumerate(sizes)]
    by_member = tf.transpose(values, [0, 2, 1, *range(3, rank)])
    return tf.reshape(by_member, [num_passes * members, dynamic[1], *static])


def join_copies(values: tf.Tensor, num_copies: int, has_members: bool | None = None) -> tf.Tensor:
    """Outputs of S copies of a batch, `[S B, K, ..., D]`, as members `[B, S K, ..., D]`.

    Args:
        values: raw outputs.
        num_copies: S.
        has_members: as in `as_members`.
    """
    # A reshape forgets static sizes unless they are passed to it.
    values = as_members(values, has_members).values
    rank, members = int(values.shape.rank), values.shape[1]
    dynamic = tf.unstack(tf.shape(values), num=rank)
    sizes = [dynamic[i] if values.shape[i] is None else values.shape[i] for i in range(2, rank)]
    by_copy = tf.reshape(values, [num_copies, -1, members, *sizes])
    by_example = tf.transpose(by_copy, [1, 0, 2, *range(3, rank + 1)])
    return tf.reshape(by_example, [-1, num_copies * members, *sizes])


def check_output_shape(shape: Any, has_members: bool | None = None) -> tf.TensorShape:
    """A model's output shape with an axis of members, refused unless answers can be made of it.

    Args:
        shape: of raw outputs.
        has_members: as in `as_members`.

    Returns:
        `[B, K, ..., D]`; sizes of positions may be None.

    Raises:
        ValueError: unless it is `[batch, members, ..., outputs]` or `[batch, ..., outputs]`.
    """
    shape = tf.TensorShape(shape)
    if shape.rank is not None and not _has_members(shape.rank, has_members):
        shape = tf.TensorShape([shape[0], 1, *shape[1:]])
    if shape.rank is None or shape.rank < 3 or shape[-1] is None or shape[1] is None:
        raise ValueError(
            "The posterior predictive needs outputs [batch, members, ..., outputs] or "
            "[batch, ..., outputs] with known numbers of members and outputs; end the model with "
            f"SplitMembers(K). Received: a model with outputs of shape {shape}"
        )
    return shape


def _swap_first_two(values: tf.Tensor) -> tf.Tensor:
    return tf.transpose(values, [1, 0, *range(2, int(values.shape.rank))])
