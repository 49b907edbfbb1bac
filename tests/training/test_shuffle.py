"""The order of the examples: a permutation, from the key, and none more likely than another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn.training import shuffle
from fnn.training.shuffle import permutation

KEY = jax.random.key(11)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("n", [1, 2, 5, 256, 257, 289, 290, 1000])
def test_each_index_comes_once(n):
    keys = jax.random.split(KEY, 50)
    orders = jax.jit(jax.vmap(lambda key: permutation(key, n)))(keys)
    assert (orders.shape, orders.dtype) == ((50, n), jnp.int32)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(n), (50, 1)))


def test_large_n():
    np.testing.assert_array_equal(np.sort(permutation(KEY, 60_001)), np.arange(60_001))


def test_one_key_one_order():
    one, again = permutation(KEY, 400), permutation(KEY, 400)
    other = permutation(jax.random.key(12), 400)
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.98


@pytest.mark.long
def test_vmap_over_keys_is_a_loop_over_keys():
    keys = jax.random.split(KEY, 5)
    batched = jax.vmap(lambda key: permutation(key, 300))(keys)
    np.testing.assert_array_equal(batched, [permutation(key, 300) for key in keys])


def deviations(n, keys):
    """How far orders from many keys are from uniform, in standard deviations of chi-square.

    For each index where it lands; for neighbours where both land, which is what a batch
    sees, in a coarse grid of places; and how far apart neighbours land.
    """
    orders = np.asarray(
        jax.jit(jax.vmap(lambda key: permutation(key, n)))(jax.random.split(KEY, keys))
    )
    cells, places = 16, orders * 16 // n
    size = np.bincount(np.arange(n) * 16 // n, minlength=cells)
    joint = np.outer(size, size) - np.diag(size)
    lands = np.stack([np.bincount(column, minlength=cells) for column in places.T])
    pairs = [
        np.bincount(places[:, i] * cells + places[:, i + step], minlength=cells**2)
        for step in (1, 2, 16, 17, n // 2)
        for i in range(0, n - step, 7)
    ]
    apart = np.bincount(np.abs(np.diff(orders, axis=1)).ravel(), minlength=n)[1:]
    gaps = 2.0 * (n - np.arange(1, n)) / (n * (n - 1))
    return {
        "places": _deviation(lands, size / n),
        "pairs": _deviation(np.stack(pairs), joint.ravel() / joint.sum()),
        "neighbours": _deviation(apart[None], gaps),
    }


def _deviation(counts, probability):
    """Chi-square of rows of counts, less its mean, over its standard deviation."""
    expected = counts.sum(-1, keepdims=True) * probability
    freedom = counts.shape[0] * (counts.shape[1] - 1)
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("n", [257, 500])
def test_no_order_is_favoured(n):
    assert max(deviations(n, 4000).values()) < 6


def test_too_few_rounds_would_be_seen(monkeypatch):
    monkeypatch.setattr(shuffle, "ROUNDS", 4)
    assert max(deviations(500, 4000).values()) > 20


@pytest.mark.sampled(2)
@pytest.mark.parametrize("n", [10, 257, 289, 361, 400, 529])
def test_as_many_orders_are_odd_as_even(n):
    """A Feistel network on an odd number of places is of one parity whatever its tables."""
    orders = jax.jit(jax.vmap(lambda key: permutation(key, n)))(jax.random.split(KEY, 400))
    assert 150 < sum(is_odd(order) for order in np.asarray(orders)) < 250


def is_odd(order):
    """n less the number of cycles is odd."""
    left, cycles = set(range(len(order))), 0
    while left:
        i, cycles = left.pop(), cycles + 1
        while (i := int(order[i])) in left:
            left.remove(i)
    return (len(order) - cycles) % 2 == 1
