"""Attention as one Pallas kernel, for GPUs and TPUs: the scores never leave the chip."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fnn.base import Array
from fnn.layers.attention import attended
from fnn.reductions import for_each_copy

BLOCK = 128
"""A program of the kernel has this many queries, and reads this many keys at a time."""
WIDTHS = {jnp.dtype(jnp.float32): (16, 32, 64), jnp.dtype(jnp.bfloat16): (16, 32, 64, 128)}
"""The widths of a head whose blocks a GPU holds on its chip."""


def attend(
    q: Array, k: Array, v: Array, causal: bool, mask: Array | None = None
) -> tuple[Array, Array]:
    """The same as `fnn.layers.attention.attended`, in one kernel where there is one: on a GPU
    (CUDA) or a TPU, without a mask, for a number of tokens that is divisible by `BLOCK`, and
    float32 or bfloat16 of one of `WIDTHS`. Its derivative is that of `attended`.

    XLA does not split a kernel over devices: on a mesh call it inside of `jax.shard_map`, as the
    training functions do. A program that is exported for several platforms can't have it.

    >>> import fnn
    >>> layer = fnn.attention(64, 4, causal=True, attend=attend)
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 128, 64)))
    >>> y.shape
    (2, 128, 64)
    """
    plain = partial(attended, causal=causal, mask=mask)
    tokens, e = q.shape[-2:]
    if mask is not None or tokens % BLOCK or e not in WIDTHS.get(q.dtype, ()):
        return plain(q, k, v)
    on = lambda params: for_each_copy(partial(_kernel, causal, params), q.shape[:-2])
    gpu = on(triton.CompilerParams(num_warps=4, num_stages=2))
    rule = jax.custom_jvp(
        partial(jax.lax.platform_dependent, cuda=gpu, tpu=on(None), default=plain)
    )
    rule.defjvp(lambda arrays, tangents: jax.jvp(plain, arrays, tangents))
    return rule(q, k, v)


def _kernel(
    causal: bool, params: Any, q: Array, k: Array, v: Array, interpret: bool = False
) -> tuple[Array, Array]:
    """h (tokens, e) and the largest scores (tokens, 1) of one head. The keys are read block by
    block; when a larger score is found, the sums so far are scaled down. Milakov & Gimelshein
    2018; Dao et al. 2022.

        top' = max(top, s),    a = exp(s - top'),    c = exp(top - top'),
        total' = c total + a v,    weight' = c weight + sum(a),    h = total / weight
    """
    tokens, e = q.shape

    def program(q: Any, k: Any, v: Any, h: Any, peak: Any) -> None:
        block, queries = pl.program_id(0), q[...]
        at = block * BLOCK + jax.lax.broadcasted_iota(jnp.int32, (BLOCK, 1), 0)
        row = jax.lax.broadcasted_iota(jnp.int32, (1, BLOCK), 1)

        def one(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            total, weight, top = sums
            keys = pl.ds(i * BLOCK, BLOCK)
            s = jnp.dot(queries, k[keys].T, preferred_element_type=jnp.float32) / math.sqrt(e)
            if causal:
                s = jnp.where(i * BLOCK + row <= at, s, -jnp.inf)
            larger = jnp.maximum(top, s.max(-1, keepdims=True))
            a, c = jnp.exp(s - larger), jnp.exp(top - larger)
            part = jnp.dot(a.astype(v.dtype), v[keys], preferred_element_type=jnp.float32)
            return c * total + part, c * weight + a.sum(-1, keepdims=True), larger

        zeros, column = jnp.zeros((BLOCK, e), jnp.float32), jnp.zeros((BLOCK, 1), jnp.float32)
        count = block + 1 if causal else tokens // BLOCK
        start = zeros, column, column - jnp.inf
        total, weight, peak[...] = jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), one, start)
        h[...] = (total / weight).astype(h.dtype)

    rows = lambda width: pl.BlockSpec((BLOCK, width), lambda i: (i, 0))
    whole = pl.BlockSpec((tokens, e), lambda i: (0, 0))
    return pl.pallas_call(
        program,
        grid=(tokens // BLOCK,),
        in_specs=[rows(e), whole, whole],
        out_specs=[rows(e), rows(1)],
        out_shape=jax.eval_shape(partial(attended, causal=causal), q, k, v),
        compiler_params=params,
        interpret=interpret,
    )(q, k, v)
