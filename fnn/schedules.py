"""Learning rate schedules: step -> rate, where `step` is the number of updates already done.

A schedule is a pure function of an int32 scalar, traced or not; the rate is float32. All
raise ValueError for a rate or a number of steps that is not above 0.
"""

from collections.abc import Callable

import jax.numpy as jnp

from fnn.base import Array
from fnn.numbers import nonnegative, positive

Schedule = Callable[[Array], Array]


def constant(rate: float) -> Schedule:
    """rate, at every step.

    >>> constant(0.1)(5)
    Array(0.1, dtype=float32)
    """
    positive("constant", rate=rate)
    return lambda step: jnp.asarray(rate, jnp.float32)


def exponential_decay(rate: float, decay: float, every: int) -> Schedule:
    """rate decay^(step / every): a factor of `decay` every `every` steps, continuously.

    >>> float(exponential_decay(1.0, 0.5, every=10)(20))
    0.25
    """
    positive("exponential_decay", rate=rate, decay=decay, every=every)
    return lambda step: rate * decay ** (_float(step) / every)


def step_decay(rate: float, decay: float, every: int) -> Schedule:
    """rate decay^floor(step / every): a factor of `decay` every `every` steps.

    >>> float(step_decay(1.0, 0.5, every=10)(19))
    0.5
    """
    positive("step_decay", rate=rate, decay=decay, every=every)
    return lambda step: rate * decay ** jnp.floor(_float(step) / every)


def cosine_decay(rate: float, steps: int, final: float = 0.0) -> Schedule:
    """From `rate` to `final` along half a cosine, in `steps` steps, then `final`.

    final + (rate - final) (1 + cos(pi min(step / steps, 1))) / 2. Loshchilov & Hutter 2017.

    >>> [round(float(cosine_decay(1.0, 10)(step)), 3) for step in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    """
    positive("cosine_decay", rate=rate, steps=steps)
    nonnegative("cosine_decay", final=final)

    def schedule(step: Array) -> Array:
        done = jnp.minimum(_float(step) / steps, 1)
        return final + (rate - final) * (1 + jnp.cos(jnp.pi * done)) / 2

    return schedule


def linear_warmup(rate: float, steps: int, then: Schedule | None = None) -> Schedule:
    """From 0 to `rate` linearly in `steps` steps, after that then(step - steps), or `rate`.

    >>> schedule = linear_warmup(0.1, 10, then=cosine_decay(0.1, 90))
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    positive("linear_warmup", rate=rate, steps=steps)
    after = constant(rate) if then is None else then

    def schedule(step: Array) -> Array:
        warm = rate * _float(step) / steps
        return jnp.where(step < steps, warm, after(jnp.maximum(step - steps, 0)))

    return schedule


def warmup_stable_decay(
    rate: float, warmup: int, stable: int, decay: int, final: float = 0.0
) -> Schedule:
    """From 0 to `rate` linearly in `warmup` steps, `rate` for `stable` steps, then linearly to
    `final` in `decay` steps. Hu et al. 2024.

    >>> schedule = warmup_stable_decay(0.1, 10, 70, 20)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 80, 90, 200)]
    [0.0, 0.05, 0.1, 0.1, 0.05, 0.0]
    """
    positive("warmup_stable_decay", rate=rate, warmup=warmup, stable=stable, decay=decay)
    nonnegative("warmup_stable_decay", final=final)

    def schedule(step: Array) -> Array:
        warm = rate * jnp.minimum(_float(step) / warmup, 1)
        done = jnp.clip((_float(step) - warmup - stable) / decay, 0, 1)
        return warm - (rate - final) * done

    return schedule


def _float(step: Array) -> Array:
    return jnp.asarray(step, jnp.float32)
