"""Networks by name."""

from collections.abc import Sequence
from itertools import pairwise

from fnn.activations import identity, relu
from fnn.base import Layer, check_layer
from fnn.combinators import serial
from fnn.layers.dense import dense


def mlp(sizes: Sequence[int], activation: Layer = relu, output: Layer = identity) -> Layer:
    """The multi-layer perceptron: Z(l) = A(l-1) W(l)^T + b(l), A(l) = s(Z(l)), A(0) = X.

    sizes are the widths from input to output, such as (784, 128, 10). `activation`, by default
    relu, follows every hidden layer, and `output`, by default nothing, the last: params is a
    tuple (dense, (), dense, (), ...).

    Raises ValueError for fewer than two sizes; TypeError for an activation that is not a layer.

    >>> import jax
    >>> network = mlp((784, 128, 10))
    >>> params = network.init(jax.random.key(0))
    >>> network.forward(params, jax.numpy.ones((32, 784)))[0].shape
    (32, 10)
    """
    check_layer("mlp: activation", activation)
    check_layer("mlp: output", output)
    if len(sizes) < 2:
        raise ValueError(f"mlp: expected at least an input and an output size, got {sizes}")
    steps = list(pairwise(sizes))
    hidden = [part for step in steps[:-1] for part in (dense(*step), activation)]
    return serial(*hidden, dense(*steps[-1]), output)
