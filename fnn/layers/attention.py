"""The attention layer: each token becomes a weighted mean of the tokens of its text."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals, Tree, at_least_float32, split
from fnn.layers.shapes import check_input, named_widths
from fnn.reductions import Outer, Reduce, total

BLOCK = 256
"""The scores of this many queries are held at a time."""
Attend = Callable[[Array, Array, Array, bool, Array | None], tuple[Array, Array]]
"""What computes h of all heads, and the largest score of each query: see `attended`."""


def attention(
    d: int,
    heads: int,
    causal: bool = False,
    *,
    rotary: bool = False,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    attend: Attend | None = None,
) -> Layer:
    """Self-attention with several heads over the tokens of each text. Vaswani et al. 2017.

    params {"Q", "K", "V", "O"}, each (d, d), with a row per output; x (..., tokens, d) -> the same
    shape. The first e = d / heads rows of Q, K and V belong to the first head, and so on; below,
    the arrays of one head are (tokens, e), and A is (tokens, tokens). With c = 1/sqrt(e):

        forward    q = x Q^T,  k = x K^T,  v = x V^T,
                   A = softmax(c q k^T) over the keys,    h = A v,    y = [h of all heads] O^T
        backward   dh = dy O,    dv = A^T dh,    dA = dh v^T,    dS = A * (dA - sum(A * dA)),
                   dq = c dS k,    dk = c dS^T q,    dx = dq Q + dk K + dv V,
                   dO = dy^T h,    dQ = dq^T x,  likewise K and V, summed over batch and tokens

    causal: token p attends to the tokens up to and including p. rotary: entries i and i + e/2 of
    q and k are rotated by the angle p 10000^(-2i/e) at token p (Su et al. 2021), so that scores
    depend on the distance of two tokens. The softmax is in at least float32.

    x may be a pair (x, mask) with a boolean mask (..., tokens) that is False for padding; y is then
    a pair with the same mask. Tokens attend to themselves and to tokens that are not padding; the
    loss must ignore y at padding. The mask has no gradient: its part of dx and dy is None.

    Each text is an example and its tokens are positions: losses per token need `example_axes`. Only
    x and the largest score of each query are kept; backward computes q, k, v and A again, as
    FlashAttention does (Dao et al. 2022). Both hold A of at most `BLOCK` queries at a time, where
    the number of tokens can be divided so. With attend=`fnn.layers.kernels.attend` a GPU or a TPU
    computes h in one kernel.

    Raises ValueError for widths below 1, a d that is not divisible by heads, an odd e with rotary,
    and x, mask or params with other shapes; TypeError if x and params differ in dtype, and for a
    mask that is not boolean.

    >>> import jax
    >>> layer = attention(4, 2, causal=True)
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 3, 4)))
    >>> y.shape
    (5, 3, 4)
    """
    name, d, heads = named_widths("attention", d, heads)
    if d % heads:
        raise ValueError(f"{name}: expected a width divisible by the number of heads")
    if rotary and d // heads % 2:
        raise ValueError(f"{name}: expected an even width per head with rotary, got {d // heads}")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("QKVO", (d, d))

    def init(key: Array) -> Params:
        return {leaf: weight_init(k, (d, d)) for leaf, k in zip("QKVO", split(key, 4), strict=True)}

    def projected(params: Params, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = (_heads(x @ params[leaf].T, heads) for leaf in "QKV")
        return (_rotated(q), _rotated(k), v) if rotary else (q, k, v)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        x, mask = x if isinstance(x, tuple) else (x, None)
        check_input(name, params, shapes, x, "tokens", d)
        _check_mask(name, x, mask)
        h, peak = (attend or attended)(*projected(params, x), causal, mask)
        y = _merged(h) @ params["O"].T
        return y if mask is None else (y, mask), (x, mask, peak)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        x, mask, peak = residuals
        dy = dy if mask is None else dy[0]
        dh = _heads(dy @ params["O"], heads)
        h, dq, dk, dv = _pulled(*projected(params, x), causal, mask, peak, dh)
        if rotary:
            dq, dk = _rotated(dq, back=True), _rotated(dk, back=True)
        dq, dk, dv = map(_merged, (dq, dk, dv))
        dparams = {
            "Q": reduce(Outer(dq, x)),
            "K": reduce(Outer(dk, x)),
            "V": reduce(Outer(dv, x)),
            "O": reduce(Outer(dy, _merged(h))),
        }
        dx = dq @ params["Q"] + dk @ params["K"] + dv @ params["V"]
        return dparams, dx if mask is None else (dx, None)

    return Layer(init, forward, backward)


def _check_mask(name: str, x: Array, mask: Array | None) -> None:
    if mask is None:
        return
    if not (hasattr(mask, "dtype") and jnp.issubdtype(mask.dtype, jnp.bool_)):
        got = getattr(mask, "dtype", "no array")
        raise TypeError(f"{name}: expected a boolean mask, got {got}")
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"{name}: expected a mask of shape {x.shape[:-1]}, got {mask.shape}")


def attended(
    q: Array, k: Array, v: Array, causal: bool, mask: Array | None = None
) -> tuple[Array, Array]:
    """h (..., heads, tokens, e) of q, k and v of this shape, and the largest score of each query
    (..., heads, tokens, 1), with the mask (..., tokens) of `attention`.

    >>> q = jnp.ones((2, 3, 4))
    >>> h, largest = attended(q, q, q, causal=True)
    >>> h.shape, float(largest[0, 0, 0])
    ((2, 3, 4), 2.0)
    """

    def some(at: Array, q: Array) -> tuple[Tree, Tree]:
        s = _scores(at, q, k, causal, mask)
        peak = s.max(-1, keepdims=True)
        return (_softmax(s, peak).astype(v.dtype) @ v, peak), ()

    return _by_queries(some, q)[0]


def _pulled(
    q: Array, k: Array, v: Array, causal: bool, mask: Array | None, peak: Array, dh: Array
) -> tuple[Array, ...]:
    """h again, and dq, dk and dv."""

    def some(at: Array, q: Array, peak: Array, dh: Array) -> tuple[Tree, Tree]:
        a = _softmax(_scores(at, q, k, causal, mask), peak)
        narrow, scale = a.astype(q.dtype), 1 / math.sqrt(q.shape[-1])
        dv = jnp.einsum("...pq,...pe->...qe", narrow, dh, preferred_element_type=a.dtype)
        da = jnp.einsum("...pe,...qe->...pq", dh, v, preferred_element_type=a.dtype)
        ds = (scale * a * (da - (a * da).sum(-1, keepdims=True))).astype(q.dtype)
        dk = jnp.einsum("...pq,...pe->...qe", ds, q, preferred_element_type=a.dtype)
        return (narrow @ v, ds @ k), (dk, dv)

    (h, dq), (dk, dv) = _by_queries(some, q, peak, dh)
    return h, dq, dk.astype(q.dtype), dv.astype(q.dtype)


def _scores(at: Array, q: Array, k: Array, causal: bool, mask: Array | None) -> Array:
    """The scores of the queries at these places (..., 1), -inf for tokens they do not attend to."""
    wide, keys = at_least_float32(q.dtype), jnp.arange(k.shape[-2])
    s = jnp.einsum("...pe,...qe->...pq", q, k, preferred_element_type=wide)
    seen = keys <= (at if causal else k.shape[-2])
    if mask is not None:
        seen &= mask[..., None, None, :] | (keys == at)
    return jnp.where(seen, s / math.sqrt(q.shape[-1]), -jnp.inf)


def _softmax(s: Array, peak: Array) -> Array:
    """The softmax of scores with this maximum. Its rows sum to one up to rounding; those of
    exp(s - logsumexp(s)) do not for large scores."""
    a = jnp.exp(s - peak)
    return a / a.sum(-1, keepdims=True)


def _by_queries(f: Callable[..., tuple[Tree, Tree]], *each: Array) -> tuple[Tree, Tree]:
    """What f(places, *each) returns, for arrays (..., tokens, e): a tree of arrays like these, with
    a row per query, and a tree of sums over the queries. Long texts are cut into equal blocks of at
    most `BLOCK` queries, if that gives no small ones."""
    tokens = each[0].shape[-2]
    each = (jnp.arange(tokens)[:, None], *each)
    block = max(n for n in range(1, min(tokens, BLOCK) + 1) if tokens % n == 0)
    if tokens <= BLOCK or 8 * block < BLOCK:
        return f(*each)
    parts = [jnp.moveaxis(a.reshape(*a.shape[:-2], -1, block, a.shape[-1]), -3, 0) for a in each]

    def one(sums: Tree, block: Tree) -> tuple[Tree, Tree]:
        rows, terms = f(*block)
        return jax.tree.map(jnp.add, sums, terms), rows

    like = jax.eval_shape(f, *[part[0] for part in parts])[1]
    zeros = jax.tree.map(jnp.zeros_like, like)
    sums, rows = jax.lax.scan(one, zeros, tuple(parts))
    join = lambda a: jnp.moveaxis(a, 0, -3).reshape(*a.shape[1:-2], tokens, a.shape[-1])
    return jax.tree.map(join, rows), sums


def _heads(a: Array, heads: int) -> Array:
    """(..., tokens, d) -> (..., heads, tokens, d / heads)."""
    return jnp.moveaxis(a.reshape(*a.shape[:-1], heads, -1), -2, -3)


def _merged(a: Array) -> Array:
    """(..., heads, tokens, e) -> (..., tokens, heads e)."""
    a = jnp.moveaxis(a, -3, -2)
    return a.reshape(*a.shape[:-2], -1)


def _rotated(a: Array, back: bool = False) -> Array:
    """Each token's entries (..., tokens, e) rotated by its angles, or rotated back."""
    tokens, half = a.shape[-2], a.shape[-1] // 2
    wide = at_least_float32(a.dtype)
    rates = 10000.0 ** (-jnp.arange(half, dtype=wide) / half)
    angles = jnp.arange(tokens, dtype=wide)[:, None] * rates
    cos, sin = (f(-angles if back else angles) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(a.astype(wide), 2, -1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    return jnp.concatenate(turned, -1).astype(a.dtype)
