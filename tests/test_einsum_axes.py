"""The axes and shapes of equations are those of Keras's layer."""

import keras
import pytest

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.einsum_axes import expand, letters, shape_of_outputs

CASES = [
    ("ab,bc->ac", (None, 4), 6),
    ("...x,xy->...y", (None, 5, 3), 8),
    ("ab...,bc->ac...", (None, 4, 5, 6), 7),
    ("abc,cd->abd", (None, 5, 4), (None, 7)),
    ("abc,bcd->ad", (None, 2, 3), 4),
    ("abc,cde->abde", (None, 4, 16), (4, 2, 3)),
    ("...abc,bcd->...ad", (None, 9, 4, 2, 3), (4, 7)),
]


@pytest.mark.parametrize(("equation", "shape", "partial"), CASES)
def test_outputs_have_the_shape_of_the_stock_layer(equation, shape, partial):
    stock = keras.layers.EinsumDense(equation, partial)
    stock.build(shape)
    expected = tuple(stock.compute_output_shape(shape))
    assert shape_of_outputs(equation, shape, partial) == expected
    inputs, _, outputs = letters(equation)
    assert len(expand(inputs, len(shape))) == len(shape)
    assert len(expand(outputs, len(expected))) == len(expected)


@pytest.mark.parametrize("cls", [r1.layers.EinsumDenseRank1, bk.layers.EinsumDenseBali])
@pytest.mark.parametrize(
    ("equation", "shape", "partial"),
    [("abc,cd->abd", (None, 4), (5, 7)), ("abc,cd->abde", (None, 5, 4), 7)],
)
def test_an_equation_that_does_not_fit_is_refused(cls, equation, shape, partial):
    with pytest.raises(ValueError, match=r"equation|output shape"):
        cls(equation, partial).build(shape)
    with pytest.raises(ValueError, match=r"`equation` must.*Received: equation='abc,cd->abd"):
        shape_of_outputs(equation, shape, partial)
