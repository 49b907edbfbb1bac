"""Members: k networks in one program, each of which leaves out one fold of the examples.

Each member keeps the parameters of its own best epoch on the fold that it leaves out, and the run
predicts the mean of what they predict. Krogh & Vedelsby 1995; bagging: Breiman 1996. All see the
same batches, so an input that they share is multiplied by all first weights at once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import value_and_grad
from fnn.base import Array, Grads, Layer, Loss, Optimizer, Params, Residuals, split
from fnn.data import DataError, Dataset
from fnn.reductions import Reduce, total

COVERAGE = 0.9
"""The share of values that an interval around a prediction is to hold."""


def ensemble(layer: Layer, k: int, classifies: bool) -> Layer:
    """k copies of the layer with stacked params: the mean y of their outputs z_i, or, where these
    are logits, the logarithm of their mean probabilities, which are logits too.

    The mean: dz_i = dy / k. Of logits, with p_i = softmax(z_i) and r_i = p_i / sum_j p_j:
    dz_i = r_i dy - p_i sum(r_i dy).
    """

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        z, residuals = jax.vmap(layer.forward, (0, None))(params, x)
        if not classifies:
            return z.mean(0), (residuals, ())
        z = jax.nn.log_softmax(z)
        y = jax.nn.logsumexp(z, 0)
        return y - jnp.log(jnp.asarray(k, z.dtype)), (residuals, (z, y))

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        inner, logs = residuals
        dz = jnp.broadcast_to(dy / k, (k, *dy.shape))
        if classifies:
            z, y = logs
            dz = jnp.exp(z - y) * dy
            dz = dz - jnp.exp(z) * dz.sum(-1, keepdims=True)
        of = lambda p, kept, d: layer.backward(p, kept, d, reduce)
        dparams, dx = jax.vmap(of)(params, inner, dz)
        return dparams, dx.sum(0)

    return Layer(lambda key: jax.vmap(layer.init)(split(key, k)), forward, backward)


def gradient(layer: Layer, loss: Loss) -> Callable[[Params, Any, Array], tuple[Array, Params]]:
    """What trains the copies of an `ensemble`, from batches (x, (y, fold)): copy i learns from the
    examples whose fold is not i. The value is the mean of the copies' losses."""
    learn = value_and_grad(layer, loss)

    def of(params: Params, batch: Any, key: Array) -> tuple[Array, Params]:
        x, (y, fold) = batch

        def one(params: Params, i: Array) -> tuple[Array, Params]:
            weight = (fold != i).astype(x.dtype)
            return learn(params, x, y, weight / jnp.maximum(weight.mean(), 1 / len(weight)))

        values, grads = jax.vmap(one)(params, jnp.arange(len(jax.tree.leaves(params)[0])))
        return values.mean(), grads

    return of


def each(optimizer: Optimizer) -> Optimizer:
    """The update rule for each copy alone; they share the number of steps."""

    def init(params: Params) -> Any:
        state = jax.vmap(optimizer.init)(params)
        return state._replace(step=state.step[0])

    def update(state: Any, grads: Params) -> Any:
        axes = jax.tree.map(lambda _: 0, state)._replace(step=None)
        return jax.vmap(optimizer.update, (axes, 0), axes)(state, grads)

    return Optimizer(init, update)


def folds(train: Dataset, k: int, seed: int) -> np.ndarray:
    """The fold of each example, (n,) from 0 to k - 1: of classes the same shares, groups whole, and
    of examples with times one stretch of time after another.

    Raises DataError for fewer than k examples, groups or times.
    """
    n, random = len(train.x), np.random.default_rng(seed)
    units = train.groups if train.times is None else train.times
    codes = np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]
    if (count := codes.max() + 1) < k:
        what = "examples" if units is None else "groups" if train.times is None else "times"
        raise DataError(f"{train.name}: {count} {what} to train on: {k} members need {k}")
    if train.times is not None:
        return (codes * k // count).astype(np.int32)
    order = random.permutation(count)
    if train.groups is None and train.classes:
        order[np.lexsort((order.copy(), train.y))] = np.arange(n)
    return (order[codes] % k).astype(np.int32)


def margins(errors: np.ndarray) -> np.ndarray:
    """How far from its prediction a value lies at most, with probability `COVERAGE`: (k,), from the
    absolute errors (n, k) of predictions by networks that have not seen the examples; () for too
    few examples. It is the ceil(COVERAGE (n + 1))-th smallest error: Lei et al. 2018, of folds
    Vovk 2015.
    """
    place = math.ceil(COVERAGE * (len(errors) + 1))
    return np.sort(errors, axis=0)[place - 1] if place <= len(errors) else np.empty(0)


def places(fold: np.ndarray, k: int) -> np.ndarray:
    """The examples of each fold, (k, m); those of a smaller fold begin anew."""
    parts = [np.flatnonzero(fold == i) for i in range(k)]
    return np.stack([np.resize(part, max(map(len, parts))) for part in parts])
