"""Attention as one Pallas kernel, for GPUs and TPUs: the scores never leave the chip."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fnn.base import Array
from fnn.reductions import for_each_copy

BLOCK = 128
"""A program of the kernel has this many queries, and reads this many keys at a time."""
Attend = Callable[[Array, Array, Array], tuple[Array, Array]]


def fused(plain: Attend, causal: bool) -> Attend:
    """The function plain(q, k, v) of arrays (..., tokens, e), which returns the attended values h,
    of the same shape, and each query's largest score (..., tokens, 1), as one kernel on GPUs and
    TPUs where `fits`. Its derivative is that of plain."""

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        if not fits(q):
            return plain(q, k, v)
        on = lambda params: for_each_copy(partial(kernel, plain, causal, params), q.shape[:-2])
        gpu = on(triton.CompilerParams(num_warps=4, num_stages=2))
        rule = jax.custom_jvp(
            partial(jax.lax.platform_dependent, cuda=gpu, tpu=on(None), default=plain)
        )
        rule.defjvp(lambda arrays, tangents: jax.jvp(plain, arrays, tangents))
        return rule(q, k, v)

    return attend


def fits(q: Array) -> bool:
    """Whether the kernel takes arrays of this shape and dtype: whole blocks of tokens, heads whose
    width is a power of two, and no more in a block than the chip holds."""
    tokens, e = q.shape[-2:]
    widths = {jnp.float32.dtype: (16, 32, 64), jnp.bfloat16.dtype: (16, 32, 64, 128)}
    return tokens % BLOCK == 0 and e in widths.get(q.dtype, ())


def kernel(
    plain: Attend, causal: bool, params: Any, q: Array, k: Array, v: Array, interpret: bool = False
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
        out_shape=jax.eval_shape(plain, q, k, v),
        compiler_params=params,
        interpret=interpret,
    )(q, k, v)
