"""Sections that the docstrings of rank-1 layers share, each written once.

A class writes a placeholder such as `{{raises}}` on a line of its own. `@fill_docstring` puts the
section there when the class is defined, as Keras does with `{{base_optimizer_keyword_args}}`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TypeVar

__all__ = ["fill", "fill_docstring"]

T = TypeVar("T")

# Sections may hold placeholders too: for other sections, or for the facts of a class.
_SECTIONS = {
    "rank1_arguments": """\
**kwargs: every argument of `keras.layers.{{stock}}`, and those of
    `tfp_rank1.layers.Rank1Mixin`: `ensemble_size`, `posterior`, `prior`, `r_posterior`,
    `s_posterior`, `r_prior`, `s_prior`, `bias_posterior`, `bias_prior`, `perturbation`,
    `sampling`, `min_perturbation_value`, `max_perturbation_value`, `kl_weight`,
    `kl_reduction`, `seed`.""",
    "output_shape": "Output shape: that of `keras.layers.{{stock}}`, for `K*B` rows.",
    "raises": """\
Raises:
    ValueError: if K does not divide the number of rows, for a value that an argument does not
        take, or for a posterior whose KL from its prior is infinite.
    tf.errors.InvalidArgumentError: if K does not divide a number of rows that is known only when
        the graph runs.""",
    "source": """\
Source: Dusenberry et al. (2020), "Efficient and Scalable Bayesian Neural Nets with Rank-1
Factors".""",
    "convolution": """\
r_k scales the input channels and s_k the output channels, the same at every position.

Args:
    filters: number of output channels.
    kernel_size: {{window}} of the window.
    {{rank1_arguments}}

{{convolution_shapes}}

{{raises}}""",
    "depthwise_convolution": """\
r_k scales the input channels and s_k the `channels * depth_multiplier` output channels, the same
at every position.

Args:
    kernel_size: {{window}} of the window.
    {{rank1_arguments}}

{{convolution_shapes}}

{{raises}}""",
    "convolution_shapes": """\
Input shape: `[K*B, {{positions}}, channels]`, member-major;
    `[K*B, channels, {{positions}}]` with `data_format="channels_first"`.

{{output_shape}}""",
}

# Window and positions of convolutions, by the number of dimensions in the name of the class.
_CONVOLUTIONS = {
    "1D": {"window": "length", "positions": "steps"},
    "2D": {"window": "height and width", "positions": "height, width"},
    "3D": {"window": "depth, height and width", "positions": "depth, height, width"},
}


def fill_docstring(cls: type[T]) -> type[T]:
    """A decorator that fills the placeholders in the docstring of a rank-1 layer.

    Args:
        cls: the class, named after its stock layer: `Conv2DRank1`.

    Returns:
        The class itself.

    Raises:
        KeyError: for a placeholder without a section.

    Example:
    ```python
    @registered("tfp_rank1")
    @fill_docstring
    class DenseRank1(Rank1Mixin, keras.layers.Dense): ...      # {{raises}} in its docstring
    ```
    """
    facts = {"stock": cls.__name__.removesuffix("Rank1")}
    for dimensions, words in _CONVOLUTIONS.items():
        facts |= words if dimensions in cls.__name__ else {}
    return fill(cls, _SECTIONS | facts)


def fill(cls: type[T], sections: dict[str, str]) -> type[T]:
    """The class, with sections in the places of the placeholders in its docstring.

    Args:
        cls: the class.
        sections: texts by name; they may hold placeholders too.

    Raises:
        KeyError: for a placeholder without a section.
    """
    # `python -OO` strips docstrings.
    if cls.__doc__ is not None:
        # Before Python 3.13 a docstring keeps the indentation of its source, sections have none.
        cls.__doc__ = _fill(inspect.cleandoc(cls.__doc__), sections)
    return cls


def _fill(text: str, values: dict[str, str]) -> str:
    def section(match: re.Match[str]) -> str:
        return textwrap.indent(_fill(values[match[2]], values), match[1])

    # A section takes the indentation of its placeholder, so whole lines go first.
    text = re.sub(r"^( *)\{\{(\w+)\}\}$", section, text, flags=re.MULTILINE)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)
