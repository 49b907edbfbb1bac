"""Convolution and pooling beside XLA's autodiff, and their per-example statistics.

Both sides run on the same batch, as compiled programs, in turn. `forward and backward` takes x, W,
b and dy and gives y, dW, db and dx: ours by the layer, the other side by `jax.vjp` of
`lax.conv_general_dilated` (of `lax.reduce_window` for pooling). Statistics are those of a
convolutional network with softmax cross-entropy; their peers hold `jax.vmap(jax.grad)`. Ratios are
medians of the rounds' own: the other side's time by ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import fnn
from benchmarks.per_example import clipped, norms, squares, temporary_bytes
from benchmarks.report import table
from benchmarks.timing import alternate, ratio
from fnn import per_example

BATCH = 128
AXES = ("NHWC", "OHWI", "NHWC")

LAYERS: dict[str, tuple[fnn.Layer, tuple[int, int, int], Callable[..., Any]]] = {}
"""name -> (ours, the shape of an image, the forward pass of XLA)."""


def _convolution(size: int, c_in: int, c_out: int, stride: int = 1, padding: str = "SAME") -> None:
    def forward(params: Any, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(
            x, params["W"], (stride, stride), padding, dimension_numbers=AXES
        )
        return y + params["b"]

    layer = fnn.conv2d(c_in, c_out, (3, 3), (stride, stride), padding)
    name = f"conv2d {size}x{size}x{c_in} -> {c_out}"
    name += f", stride {stride}" * (stride > 1) + ", VALID" * (padding == "VALID")
    LAYERS[name] = layer, (size, size, c_in), forward


_convolution(28, 1, 16)
_convolution(14, 16, 32)
_convolution(28, 16, 32, stride=2)
_convolution(14, 16, 32, padding="VALID")
LAYERS["max_pool 28x28x16"] = (
    fnn.max_pool((2, 2)),
    (28, 28, 16),
    lambda params, x: lax.reduce_window(x, -jnp.inf, lax.max, *2 * [(1, 2, 2, 1)], "VALID"),
)
LAYERS["mean_pool 28x28x16"] = (
    fnn.mean_pool((2, 2)),
    (28, 28, 16),
    lambda params, x: lax.reduce_window(x, 0.0, lax.add, *2 * [(1, 2, 2, 1)], "VALID") / 4,
)
NETWORK = fnn.serial(
    fnn.conv2d(1, 16), fnn.relu, fnn.max_pool((2, 2)),
    fnn.conv2d(16, 32), fnn.relu, fnn.max_pool((2, 2)),
    fnn.flatten(3), fnn.dense(7 * 7 * 32, 10),
)  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    """Time all of them and print two tables: {"layers": ..., "statistics": ...}."""
    rounds = 5 if quick else 25
    layers, statistics = {}, {}
    for name, (layer, shape, forward) in LAYERS.items():
        params, x = layer.init(jax.random.key(0)), _images(*shape)
        dy = jax.random.normal(jax.random.key(2), layer.forward(params, x)[0].shape)

        def both(params: Any, x: Any, dy: Any, layer: fnn.Layer = layer) -> Any:
            y, residuals = layer.forward(params, x)
            return y, layer.backward(params, residuals, dy)

        def theirs(params: Any, x: Any, dy: Any, forward: Any = forward) -> Any:
            y, pull = jax.vjp(forward, params, x)
            return y, pull(dy)

        def plain(params: Any, x: Any, dy: Any, layer: fnn.Layer = layer) -> Any:
            return layer.forward(params, x)[0]

        def xla(params: Any, x: Any, dy: Any, forward: Any = forward) -> Any:
            return forward(params, x)

        layers[name] = {
            "forward": _compare(plain, xla, (params, x, dy), rounds),
            "forward and backward": _compare(both, theirs, (params, x, dy), rounds),
        }
    loss, params, x = fnn.softmax_cross_entropy, NETWORK.init(jax.random.key(0)), _images(28, 28, 1)
    y = jax.random.randint(jax.random.key(3), (BATCH,), 0, 10)
    objective = fnn.objective(NETWORK, loss)
    each = jax.vmap(jax.grad(lambda p, x, y: objective(p, x[None], y[None])), (None, 0, 0))
    gram = lambda g: sum(
        leaf.reshape(BATCH, -1) @ leaf.reshape(BATCH, -1).T for leaf in jax.tree.leaves(g)
    )
    for name, ours, of_held in (
        ("squared_norms", per_example.squared_norms(NETWORK, loss), norms),
        ("clipped_value_and_grad", per_example.clipped_value_and_grad(NETWORK, loss, 1.0), clipped),
        ("second_moment", per_example.second_moment(NETWORK, loss), squares),
        ("gram", per_example.gram(NETWORK, loss), gram),
    ):
        held = lambda params, x, y, of_held=of_held: of_held(each(params, x, y))
        statistics[name] = _compare(ours, held, (params, x, y), rounds)
    parts = [(f"{name}, {part}", r) for name, parts in layers.items() for part, r in parts.items()]
    print(f"\nbatch {BATCH}, {jax.default_backend()}")
    _print("autodiff", parts)
    print()
    _print("vmap(grad)", list(statistics.items()))
    return {"batch": BATCH, "layers": layers, "statistics": statistics}


def _images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (BATCH, *shape))


def _compare(ours: Any, theirs: Any, args: Any, rounds: int) -> dict[str, Any]:
    programs = [jax.jit(f).lower(*args).compile() for f in (ours, theirs)]
    names = ("ours", "theirs")
    turns = {n: (lambda p=p: p(*args)) for n, p in zip(names, programs, strict=True)}
    samples = alternate(turns, rounds=rounds)
    return {
        "seconds": {n: samples[n].summary() for n in names},
        "ratio": ratio(samples["theirs"], samples["ours"]).summary(),
        "temporary_bytes": dict(zip(names, map(temporary_bytes, programs), strict=True)),
    }


def _print(other: str, results: list[tuple[str, dict[str, Any]]]) -> None:
    rows = [
        [
            name,
            *(f"{r['seconds'][n]['median'] * 1e3:.2f}" for n in ("ours", "theirs")),
            f"{r['ratio']['median']:.2f}",
            f"{r['ratio']['quartile_1']:.2f}-{r['ratio']['quartile_3']:.2f}",
            *(f"{r['temporary_bytes'][n] / 1e6:.2f}" for n in ("ours", "theirs")),
        ]
        for name, r in results
    ]
    print(table(["", "ms", f"{other} ms", "ratio", "quartiles", "MB", f"{other} MB"], rows))


if __name__ == "__main__":
    run(quick=False)
