"""A random order of the examples, without a sort on a CPU.

On a CPU, sorting random numbers takes n log n comparisons: for 12,800 examples of 784 features, an
eighth of an epoch's time. There a small cipher computes the permuted index of each example. On a
GPU or TPU the cipher's loops, one of them of unknown length, cost more than a sort: they are many
small kernels, and the host waits in each iteration. So the platform for which the program is
lowered decides.
"""

import math

import jax
import jax.numpy as jnp

from fnn.axes import cast, varying
from fnn.base import Array

ROUNDS = 6
"""Enough for a permutation that can't be told from a random one: Patarin 2004, "Security of random
Feistel schemes with 5 or more rounds"."""


def permutation(key: Array, n: int) -> Array:
    """A random order of 0, ..., n-1: integers of shape (n,).

    On platforms other than a CPU, and for n <= 256, where a sort is cheap and the tables below
    would be too small, it is `jax.random.permutation`. So the same key gives a different order on a
    different platform.

    On a CPU, write i = a left + right with a = sqrt(n), rounded up. A round of a Feistel network,

        (left, right) <- (right, left + f(right) mod a),

    is invertible for any f, so the rounds permute the a^2 indices; f is a random table of a
    entries, a different one in each round. An index that becomes n or more goes through the rounds
    again until it is below n, which it must be at some point of its cycle: so 0, ..., n-1 are
    permuted. Luby & Rackoff 1988; Black & Rogaway 2002 for domains of any size.

    For odd a, the parity of the permutation does not depend on the tables. So one more random bit
    decides whether the first two indices are exchanged.

    The order is as good as a uniform one for training and for sampling. There are fewer keys than
    orders, so most orders never occur; it is not suitable for cryptography.

    >>> order = permutation(jax.random.key(0), 1000)
    >>> bool((jnp.sort(order) == jnp.arange(1000)).all())
    True
    """
    # The type of what jax.random.permutation returns lacks the mesh axes that the key varies over.
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
