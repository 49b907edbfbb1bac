"""Attention by its own backward, by autodiff, and by `jax.nn.dot_product_attention`.

One text, width 64 and 4 heads, causal, of 128 to 2,048 tokens. Each program takes the params, x
and dy, and gives y, dparams and dx: ours by the layer; `autodiff` by `jax.vjp` of the layer's own
forward; `jax.nn` by `jax.vjp` of `jax.nn.dot_product_attention` between the same projections.
Memory is what the compiled program needs beside arguments and results, for a network of four such
layers: there, what each keeps until its backward adds up. Ratios are medians of the rounds' own:
the other side's time by ours.
"""

from collections.abc import Callable
from typing import Any

import jax

import fnn
from benchmarks.per_example import temporary_bytes
from benchmarks.report import table
from benchmarks.timing import alternate, ratio

WIDTH, HEADS, DEPTH = 64, 4, 4
TOKENS = (128, 256, 512, 1024, 2048)
LAYER = fnn.attention(WIDTH, HEADS, causal=True)


def run(quick: bool) -> dict[str, Any]:
    """Time all of them and print a table: {tokens: {"seconds", "ratio", "temporary_bytes"}}."""
    found = {tokens: _at(tokens, 3 if quick else 15) for tokens in TOKENS[: 2 if quick else None]}
    rows = [
        [
            str(tokens),
            *(f"{r['seconds'][name]['median'] * 1e3:.2f}" for name in PROGRAMS),
            *(f"{r['ratio'][name]['median']:.2f}" for name in PROGRAMS if name != "ours"),
            *(f"{r['temporary_bytes'][name] / 1e6:.1f}" for name in PROGRAMS),
        ]
        for tokens, r in found.items()
    ]
    print(f"\nwidth {WIDTH}, {HEADS} heads, causal, one text, {jax.default_backend()}")
    columns = ["ms", "autodiff ms", "jax.nn ms", "autodiff ratio", "jax.nn ratio"]
    memory = ["MB of 4 layers", "autodiff MB", "jax.nn MB"]
    print(table(["tokens", *columns, *memory], rows))
    return {str(tokens): r for tokens, r in found.items()}


def _ours(params: Any, x: jax.Array, dy: jax.Array) -> Any:
    y, residuals = LAYER.forward(params, x)
    return y, LAYER.backward(params, residuals, dy)


def _autodiff(params: Any, x: jax.Array, dy: jax.Array) -> Any:
    y, pull = jax.vjp(lambda params, x: LAYER.forward(params, x)[0], params, x)
    return y, pull(dy)


def _jax_nn(params: Any, x: jax.Array, dy: jax.Array) -> Any:
    y, pull = jax.vjp(_jax_forward, params, x)
    return y, pull(dy)


def _jax_forward(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = ((x @ params[leaf].T).reshape(*x.shape[:2], HEADS, -1) for leaf in "QKV")
    h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return h.reshape(x.shape) @ params["O"].T


PROGRAMS: dict[str, Callable[..., Any]] = {"ours": _ours, "autodiff": _autodiff, "jax.nn": _jax_nn}


def _deep(name: str) -> Callable[..., Any]:
    """The same for `DEPTH` layers one after another."""
    network = fnn.serial(*[LAYER] * DEPTH)

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for p in params:
            x = LAYER.forward(p, x)[0] if name == "autodiff" else _jax_forward(p, x)
        return x

    def both(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        if name == "ours":
            y, residuals = network.forward(params, x)
            return y, network.backward(params, residuals, dy)
        y, pull = jax.vjp(forward, params, x)
        return y, pull(dy)

    return both


def _at(tokens: int, rounds: int) -> dict[str, Any]:
    params = LAYER.init(jax.random.key(0))
    x, dy = jax.random.normal(jax.random.key(1), (2, 1, tokens, WIDTH))
    programs = {name: jax.jit(f).lower(params, x, dy).compile() for name, f in PROGRAMS.items()}
    deep = (params,) * DEPTH, x, dy
    turns = {name: (lambda p=p: p(params, x, dy)) for name, p in programs.items()}
    samples = alternate(turns, rounds=rounds)
    return {
        "seconds": {name: samples[name].summary() for name in PROGRAMS},
        "ratio": {
            name: ratio(samples[name], samples["ours"]).summary()
            for name in PROGRAMS
            if name != "ours"
        },
        "temporary_bytes": {
            name: temporary_bytes(jax.jit(_deep(name)).lower(*deep).compile()) for name in PROGRAMS
        },
    }


if __name__ == "__main__":
    run(quick=False)
