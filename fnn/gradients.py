"""Gradient functions for training, and functions from a gradient function to another.

    gradient(params, batch, key) -> (value, grads)

batch is (x, y), or (x, y, weight) with one weight per example; key is different in each update;
value is the batch's mean loss, a scalar, and grads a tree like params. `make_step`, `make_epoch`,
`make_train` and `fit` take one as `gradient=`, instead of that of the network and the loss.

    of             the gradient of a network and a loss
    sam            sharpness-aware minimisation
    microbatches   gradient accumulation: a part of the batch at a time, in less memory
    clipped        clipped to a maximum norm
    noisy          with normal noise added

For objective(params, batch, key) -> scalar, `jax.value_and_grad(objective)` is a gradient too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.backprop import value_and_grad
from fnn.base import Array, Layer, Loss, Params, Tree, at, at_least_float32, split
from fnn.per_example import add_noise
from fnn.reductions import safe_norm

Gradient = Callable[[Params, Tree, Tree], tuple[Array, Params]]


def of(network: Layer, loss: Loss) -> Gradient:
    """The gradient of the mean loss by the layers' backward passes: the default in training.

    Random layers use the key, which may be None for a network without any.

    Raises TypeError if network is not a layer or loss not a loss.

    >>> import fnn
    >>> params, batch = {"W": jnp.ones((1, 1)), "b": jnp.zeros(1)}, (jnp.ones((4, 1)),) * 2
    >>> of(fnn.dense(1, 1), fnn.mse)(params, batch, None)[0]
    Array(0., dtype=float32)
    """
    value_and_grad(network, loss)  # raises TypeError if one is not a layer or a loss
    return lambda params, batch, key: value_and_grad(at(network, key), loss)(params, *batch)


def sam(gradient: Gradient, rho: float | Array = 0.05) -> Gradient:
    """Sharpness-aware minimisation, Foret et al. 2021: the gradient at theta + rho g / ||g||, with
    the value at theta.

    ||g|| is the norm over all parameters together. Both gradients get the same key. Raises
    TypeError if gradient is not callable, ValueError for rho not above 0.

    >>> square = lambda params, batch, key: (params**2, 2 * params)
    >>> float(sam(square, 0.5)(jnp.array(1.0), None, None)[1])
    3.0
    """
    check("sam", gradient)
    rho = numbers.positive("sam", rho=rho)

    def perturbed(params: Params, batch: Tree, key: Any) -> tuple[Array, Params]:
        value, grads = gradient(params, batch, key)
        scale = rho / jnp.maximum(_norm(grads), 1e-30)
        there = jax.tree.map(lambda p, g: p + scale.astype(p.dtype) * g, params, grads)
        return value, gradient(there, batch, key)[1]

    return perturbed


def microbatches(gradient: Gradient, n: int) -> Gradient:
    """The same gradient computed from at most n parts of the batch, one after another: only one
    part's activations are in memory at a time, and no buffer is kept between updates.

    Part i has every n-th example, and a different key. The result is the mean over the parts,
    weighted by their numbers of examples, in at least float32; it equals the gradient of the whole
    batch if no example's loss depends on others.

    Raises TypeError if gradient is not callable, ValueError for n below 1.

    >>> mean = lambda params, batch, key: (batch.mean(), batch.sum(0))
    >>> microbatches(mean, 2)(None, jnp.array([1.0, 2.0, 6.0]), jax.random.key(0))[0]
    Array(3., dtype=float32)
    """
    check("microbatches", gradient)
    n = numbers.count("microbatches", n=n)

    def accumulated(params: Params, batch: Tree, key: Any) -> tuple[Array, Params]:
        m = len(jax.tree.leaves(batch)[0])
        size = -(-m // n)
        parts = m // size
        keys = split(key, parts + 1)

        def add(sums: Any, part: Any, key: Array) -> Any:
            share = len(jax.tree.leaves(part)[0]) / m
            found = gradient(params, part, key)
            return jax.tree.map(lambda s, g: s + share * g.astype(s.dtype), sums, found)

        # Strided, so that on a mesh each device has examples of every part.
        strided = lambda a: a[: parts * size].reshape(size, parts, *a.shape[1:]).swapaxes(0, 1)
        like = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[:size], batch), key)
        sums = jax.tree.map(lambda g: jnp.zeros(g.shape, at_least_float32(g.dtype)), like)
        several = jax.tree.map(strided, batch), keys[:-1]
        sums, _ = jax.lax.scan(lambda sums, part: (add(sums, *part), None), sums, several)
        if parts * size < m:
            sums = add(sums, jax.tree.map(lambda a: a[parts * size :], batch), keys[-1])
        return jax.tree.map(lambda s, g: s.astype(g.dtype), sums, like)

    return accumulated


def clipped(gradient: Gradient, max_norm: float | Array) -> Gradient:
    """g min(1, max_norm / ||g||), over all parameters together. Pascanu et al. 2013.

    `microbatches(clipped(...), n)` clips the gradient of each part, `clipped(microbatches(...))`
    their mean. To clip each example's gradient, see `fnn.per_example.clipped_value_and_grad`.

    Raises TypeError if gradient is not callable, ValueError for max_norm not above 0.

    >>> square = lambda params, batch, key: (params**2, 2 * params)
    >>> float(clipped(square, 0.5)(jnp.array(1.0), None, None)[1])
    0.5
    """
    check("clipped", gradient)
    max_norm = numbers.bound("clipped", max_norm=max_norm)

    def bounded(params: Params, batch: Tree, key: Any) -> tuple[Array, Params]:
        value, grads = gradient(params, batch, key)
        scale = 1 / jnp.maximum(_norm(grads) / max_norm, 1)
        return value, jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads)

    return bounded


def noisy(gradient: Gradient, stddev: float | Array) -> Gradient:
    """g + stddev * standard normal noise: see `fnn.per_example.add_noise`.

    Raises TypeError if gradient is not callable; calling it raises ValueError for a negative
    stddev.

    >>> square = lambda params, batch, key: (params**2, 2 * params)
    >>> float(noisy(square, 0.0)(jnp.array(1.0), None, jax.random.key(0))[1])
    2.0
    """
    check("noisy", gradient)

    def with_noise(params: Params, batch: Tree, key: Any) -> tuple[Array, Params]:
        key, noise_key = split(key, 2)
        value, grads = gradient(params, batch, key)
        return value, add_noise(grads, noise_key, stddev)

    return with_noise


def check(name: str, gradient: Any) -> None:
    """Raise TypeError, naming the caller, if gradient is not callable.

    >>> check("sam", 0.1)
    Traceback (most recent call last):
    TypeError: sam: expected gradient(params, batch, key) -> (value, grads), got 0.1
    """
    if not callable(gradient) or isinstance(gradient, tuple):
        expected = "gradient(params, batch, key) -> (value, grads)"
        raise TypeError(f"{name}: expected {expected}, got {gradient!r}")


def _norm(grads: Params) -> Array:
    """The Euclidean norm over all leaves together, in at least float32."""
    norms = [safe_norm(g, tuple(range(g.ndim))).astype(float) for g in jax.tree.leaves(grads)]
    return safe_norm(jnp.stack([jnp.zeros(()), *norms]), (0,))
