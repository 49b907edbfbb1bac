"""A random order of the examples, drawn on a CPU without a sort.

On a CPU, sorting random numbers costs n log n comparisons: at 12,800 examples of 784 features, an
eighth of an epoch's time. There a small cipher computes each index's new place. On a GPU or a TPU
its loops, one of them of unknown length, cost more than a sort: many small kernels, and the host
waits for each turn. So the platform for which the program is lowered decides.
"""

import math

import jax
import jax.numpy as jnp

from fnn.axes import cast, varying
from fnn.base import Array

ROUNDS = 6
"""Enough for random functions to look like a random permutation even to one who sees all of
it: Patarin, Security of random Feistel schemes with 5 or more rounds, 2004."""


def permutation(key: Array, n: int) -> Array:
    """A random order of 0, ..., n-1: integers of shape (n,).

    Where the platform is not a CPU, or n <= 256, where tables would be too small to look random
    and a sort is cheap, it is `jax.random.permutation`. So the same key gives another order on
    another platform.

    On a CPU, write i = a left + right with a = sqrt(n), rounded up. A round of a Feistel network,

        (left, right) <- (right, left + f(right) mod a),

    can be undone whatever f is, so that rounds permute the a^2 indices; here each has a
    random table of a entries for its f. An index that becomes n or more goes through the
    rounds again until it is below n, as it must be at some point of its cycle: so 0, ..., n-1
    are permuted.
    Luby & Rackoff 1988; Black & Rogaway 2002 for domains of any size.

    Rounds on an odd a are even permutations, or odd ones, whatever their tables. So one more
    random bit decides whether the first two indices are exchanged.

    The order is as good as a uniform one for training and for sampling. There are fewer keys than
    orders, so most orders never occur, and it is not a cipher for secrets.

    >>> order = permutation(jax.random.key(0), 1000)
    >>> bool((jnp.sort(order) == jnp.arange(1000)).all())
    True
    """
    # jax.random.permutation does not say that its result varies with the key.
    sort = lambda key: cast(jax.random.permutation(key, n), varying(key))
    if n <= 256:
        return sort(key)
    return jax.lax.platform_dependent(key, cpu=lambda key: _cipher(key, n), default=sort)


def _cipher(key: Array, n: int) -> Array:
    """The order of `permutation` on a CPU."""
    a = math.isqrt(n - 1) + 1
    bits = jax.random.bits(key, (1 + ROUNDS * a,))
    tables, swap = bits[1:].reshape(ROUNDS, a) % a, bits[0] % 2

    def feistel(i: Array) -> Array:
        def one(halves: tuple[Array, Array], f: Array) -> tuple[tuple[Array, Array], None]:
            left, right = halves
            return (right, (left + jnp.take(f, right, mode="clip")) % a), None

        (left, right), _ = jax.lax.scan(one, (i // a, i % a), tables)
        return a * left + right

    i = jnp.arange(n, dtype=tables.dtype)
    order = jax.lax.while_loop(
        lambda i: (i >= n).any(),
        lambda i: jnp.where(i < n, i, feistel(i)),
        feistel(jnp.where(i < 2, i ^ swap, i)),
    )
    return order.astype(jnp.int32)
