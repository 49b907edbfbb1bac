"""Common networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from fnn import initializers
from fnn.activations import identity, relu
from fnn.base import Array, Layer, check_layer
from fnn.combinators import serial
from fnn.layers.conv import conv2d
from fnn.layers.dense import dense
from fnn.layers.flatten import flatten
from fnn.layers.pool import max_pool
from fnn.layers.shapes import check_widths


def mlp(
    sizes: Sequence[int],
    activation: Layer = relu,
    output: Layer = identity,
    *,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
) -> Layer:
    """The multi-layer perceptron: Z(l) = A(l-1) W(l)^T + b(l), A(l) = s(Z(l)), A(0) = X.

    sizes are the widths from input to output, such as (784, 128, 10). `activation` follows every
    hidden layer and `output` the last: params is a tuple (dense, (), dense, (), ...). weight_init
    is that of each dense layer, such as those in `fnn.initializers`.

    Raises ValueError for fewer than two sizes; TypeError for an activation that is not a layer.

    >>> import jax
    >>> network = mlp((784, 128, 10))
    >>> params = network.init(jax.random.key(0))
    >>> network.forward(params, jax.numpy.ones((32, 784)))[0].shape
    (32, 10)
    """
    linear = lambda i, d_in, d_out: dense(d_in, d_out, weight_init=weight_init)
    return perceptron(sizes, linear, activation, output)


def perceptron(
    sizes: Sequence[int], linear: Callable[..., Layer], activation: Layer, output: Layer
) -> Layer:
    """`mlp` with any linear layers: linear(i, d_in, d_out) is layer i, from 0. Raises as `mlp`.

    >>> perceptron((8, 4, 2), lambda i, *widths: dense(*widths), relu, identity)
    Layer(serial)
    """
    check_layer("mlp: activation", activation)
    check_layer("mlp: output", output)
    if len(sizes) < 2:
        raise ValueError(f"mlp: expected at least an input and an output size, got {sizes}")
    layers = [linear(i, *step) for i, step in enumerate(pairwise(sizes))]
    hidden = [part for layer in layers[:-1] for part in (layer, activation)]
    return serial(*hidden, layers[-1], output)


def cnn(
    shape: tuple[int, int, int], channels: Sequence[int], outputs: int, activation: Layer = relu
) -> Layer:
    """A small convolutional network: for each entry of `channels`, a 3 x 3 convolution with that
    many output channels, the activation and a 2 x 2 max pooling; then a dense layer.

    shape is (height, width, channels) of an image; x (..., *shape) -> (..., outputs).

    Raises ValueError for an image that is too small to be halved that often; TypeError for an
    activation that is not a layer.

    >>> import jax
    >>> network = cnn((8, 8, 1), (16, 32), 10)
    >>> params = network.init(jax.random.key(0))
    >>> network.forward(params, jax.numpy.ones((5, 8, 8, 1)))[0].shape
    (5, 10)
    """
    check_layer("cnn: activation", activation)
    height, width, c, *channels = check_widths("cnn", *shape, *channels)
    blocks = []
    for c_in, c_out in pairwise((c, *channels)):
        blocks += [conv2d(c_in, c_out), activation, max_pool((2, 2))]
        height, width = height // 2, width // 2
    if not height or not width:
        raise ValueError(f"cnn: images of {shape} can't be halved {len(channels)} times")
    return serial(*blocks, flatten(3), dense(height * width * (c, *channels)[-1], outputs))
