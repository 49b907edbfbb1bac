"""Constructors called with random numbers of every type: an object, or one sentence that says why
not?"""

import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import fnn
from fnn import curvature, per_example, schedules

CALLS = {
    "sgd": lambda v: fnn.sgd(v),
    "momentum": lambda v: fnn.momentum(0.1, v),
    "rmsprop": lambda v: fnn.rmsprop(0.1, 0.9, v),
    "adam": lambda v: fnn.adam(0.1, b2=v),
    "adamw": lambda v: fnn.adamw(0.1, weight_decay=v),
    "clip_by_global_norm": lambda v: fnn.clip_by_global_norm(fnn.sgd(0.1), v),
    "add_l2": lambda v: fnn.add_l2(fnn.sgd(0.1), v),
    "average": lambda v: fnn.average(fnn.sgd(0.1), v),
    "accumulate": lambda v: fnn.accumulate(fnn.sgd(0.1), v),
    "huber": lambda v: fnn.huber(v),
    "elu": lambda v: fnn.elu(v),
    "leaky_relu": lambda v: fnn.leaky_relu(v),
    "dropout": lambda v: fnn.dropout(v),
    "layer_norm": lambda v: fnn.layer_norm(3, eps=v),
    "dense": lambda v: fnn.dense(v, 3),
    "repeat": lambda v: fnn.repeat(fnn.tanh, v),
    "kfac": lambda v: curvature.kfac(0.1, damping=v),
    "add_noise": lambda v: per_example.add_noise({}, None, v),
    "constant": lambda v: schedules.constant(v),
    "step_decay": lambda v: schedules.step_decay(0.1, v, v),
    "cosine_decay": lambda v: schedules.cosine_decay(0.1, 10, v),
}
EDGES = [0, -0.0, 1, 2, -1, 0.5, 1e-45, 1e-300, 1e38, 1e300, np.nan, np.inf, -np.inf, 2**31, 2**63]
OTHERS = [True, False, None, "1", b"1", 1j, [1.0], (), {}, object(), np.ones(2), jnp.ones(1)]
TYPES: list[Any] = [lambda v: v, float, np.float16, np.float32, np.float64, np.array, jnp.asarray]
TYPES += [jnp.bfloat16, np.int8, np.uint8, np.int64, np.uint64, jnp.int32]


def calls(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each refusal is a TypeError or a ValueError of one line; nothing that is not finite, not
    even NaN as a NumPy scalar, and no truth value gets through."""
    rng = random.Random(seed)
    counts = {"inputs": wanted, "accepted": 0, "refused": 0}
    for _ in range(wanted):
        name, value = rng.choice(list(CALLS)), rng.choice(EDGES + OTHERS)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = rng.choice([value, rng.uniform(-2, 2), 10.0 ** rng.randrange(-40, 39)])
            try:
                with np.errstate(all="ignore"):
                    value = rng.choice(TYPES)(value)
            except (OverflowError, ValueError, TypeError):
                continue
        try:
            CALLS[name](value)
        except (TypeError, ValueError) as error:
            message = str(error)
        else:
            assert not isinstance(value, bool | np.bool), f"{name}({value!r}) is accepted"
            assert not np.isnan(float(value)), f"{name}({value!r}) is accepted"
            counts["accepted"] += 1
            continue
        assert len(message.splitlines()) == 1, f"{name}({value!r}): {message!r}"
        counts["refused"] += 1
    return counts
