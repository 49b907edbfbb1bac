"""The outputs of a network's layers, and a table of the layers."""

import html
import math
from itertools import groupby
from typing import Any, NamedTuple

import jax

from fnn.base import Layer, Params, Tree, check_layer
from fnn.catalog import ACTIVATIONS
from fnn.targets.flops import products


def layer_outputs(network: Layer, params: Params, x: Tree) -> list[Any]:
    """The output of each of the network's layers, from input to output.

    For `serial` (such as `mlp`) and `repeat` the last one is the prediction; for `skip` it is the
    output of the layer inside; for a layer not made of others, its own output. Raises TypeError if
    network is not a layer.

    >>> import fnn
    >>> network = fnn.mlp((4, 8, 2))
    >>> params, x = network.init(jax.random.key(0)), jax.numpy.ones((5, 4))
    >>> [y.shape for y in layer_outputs(network, params, x)]
    [(5, 8), (5, 8), (5, 2), (5, 2)]
    """
    check_layer("layer_outputs", network)
    outputs = []
    for layer, part in network.parts(params) if network.parts else [(network, params)]:
        x, _ = layer.forward(part, x)
        outputs.append(x)
    return outputs


class Summary(NamedTuple):
    """The rows of `summary`, of which the first is the whole network; terminals and notebooks show
    them as a table. A row is the depth in the network, the layer's name, the shape of its output,
    its number of parameters, the flops of its matrix products in forward, and the bytes that it
    keeps for backward.

    >>> import fnn
    >>> fnn.summary(fnn.relu, jax.numpy.ones((5, 8))).rows
    [(0, 'relu', '(5, 8)', 0, 0, 320)]
    """

    rows: list[tuple[Any, ...]]

    def __repr__(self) -> str:
        cells = self._cells()
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        line = lambda name, *row: "  ".join([name.ljust(first), *map(str.rjust, row, others)])
        return "\n".join(line(*row) for row in cells)

    def _repr_html_(self) -> str:
        cell = lambda text: f"<td style='white-space: pre'>{html.escape(text)}</td>"
        rows = ("<tr>" + "".join(map(cell, row)) + "</tr>" for row in self._cells())
        return f"<table>{''.join(rows)}</table>"

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("layer", "output", "parameters", "flops", "bytes kept")
        line = lambda depth, name, shape, *counts: (
            "  " * depth + name, shape, *(f"{count:,.0f}" for count in counts)
        )  # fmt: skip
        return [head, *(line(*row) for row in self.rows)]


def summary(network: Layer, x: Tree) -> Summary:
    """A table of the network's layers for an input x, an array or a tree, of which only shapes and
    dtypes matter: nothing is computed.

    There is a row per layer, followed by those of the layers inside it; consecutive equal layers
    are one row, with their number. Raises TypeError if network is not a layer, and what the network
    raises for x.

    >>> import fnn
    >>> summary(fnn.mlp((4, 8, 2)), jax.numpy.ones((5, 4)))
    layer       output  parameters  flops  bytes kept
    serial      (5, 2)          58    480         560
      dense     (5, 8)          40    320          80
      relu      (5, 8)           0      0         320
      dense     (5, 2)          18    160         160
      identity  (5, 2)           0      0           0
    """
    check_layer("summary", network)
    rows: list[tuple[Any, ...]] = []
    params = jax.eval_shape(network.init, jax.random.key(0))
    jax.eval_shape(lambda params, x: rows.extend(_rows(network, params, x, 0)), params, x)
    return Summary(rows)


def _rows(layer: Layer, params: Params, x: Tree, depth: int) -> list[tuple[Any, ...]]:
    """The rows of a layer and of those inside it, from traced arrays."""
    jaxpr, (y, residuals) = jax.make_jaxpr(layer.forward, return_shape=True)(params, x)
    kept = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(residuals))
    shape = ", ".join(str(a.shape) for a in jax.tree.leaves(y))
    size = sum(a.size for a in jax.tree.leaves(params))
    name = next((name for name, known in ACTIVATIONS.items() if known == layer), repr(layer)[6:-1])
    inside = []
    for part, of_part in layer.parts(params) if layer.parts else ():
        inside.append(_rows(part, of_part, x, depth + 1))
        x, _ = part.forward(of_part, x)
    rows = [(depth, name, shape, size, products(jaxpr, 1), kept)]
    for ((_, copy, *counts), *below), copies in groupby(inside):
        n = len(list(copies))
        rows += [(depth + 1, f"{n} x {copy}" if n > 1 else copy, *counts), *below]
    return rows
