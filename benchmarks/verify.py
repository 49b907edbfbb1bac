"""The judge against its peers, on the same planted bugs: `python -m benchmarks.verify`.

The bugs are those of `tests/bugs.py`, planted into a 784-64-64-10 relu network with softmax
cross-entropy and 128 examples, the loss scaled by 1e-4, 1 and 1e4. Each checker is called as its
documentation has it, on the same gradient:

    fnn             verify.check_gradients
    jax             jax.test_util.check_grads on a custom_vjp with that gradient, float32
    jax float64     the same in float64, for which its tolerances are tighter
    chex            chex.assert_numerical_grads on the same function, order 1
    torch           torch.autograd.gradcheck, fast mode, on a torch.autograd.Function that hands
                    out that gradient; float64, as it asks for

A bug is caught where the checker does not pass it. A false alarm is a correct gradient refused, in
one of the seeds. Seconds are the median of a check, with everything warm; `first` is a fresh
process's first check. torch's slow mode would need 55,000 evaluations of the network a bug.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bugs import GRADIENT_BUGS, SETTINGS, Setting, Steps, _cross_entropy, _cross_entropy_start

from fnn import verify

NETWORK = Setting(
    "relu, cross-entropy",
    (784, 64, 64, 10),
    SETTINGS[1].activation,
    SETTINGS[1].slope,
    _cross_entropy,
    _cross_entropy_start,
    0.0,
)
