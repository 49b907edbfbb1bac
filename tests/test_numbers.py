"""What constructors check of their numbers: every float and every count that a name of the
catalogue takes, and those of a few functions beside it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import catalog, schedules
from fnn.optimizers import Rate

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 4, 2))
DATA = np.ones((6, 3), np.float32), np.ones((6, 2), np.float32)
GIVEN = {fnn.Optimizer: fnn.sgd(0.1), fnn.Layer: fnn.tanh, int: 2, float: 0.5, Rate: 0.1}
"""An argument of each type."""
SCHEDULES = {
    name: f for name, f in vars(schedules).items()
    if inspect.isfunction(f) and f.__module__ == "fnn.schedules" and not name.startswith("_")
}  # fmt: skip
TABLES = {
    name: table for name, table in vars(catalog).items() if name.isupper()
} | {"SCHEDULES": SCHEDULES}  # fmt: skip


def parameters(tables, *types):
    """For every parameter with one of these types of every constructor in the tables: the
    constructor as a function of this one number."""
    found = {}
    for table in tables:
        for name in table:
            make = getattr(fnn, name, None) or table[name]
            if not inspect.isfunction(make):
                continue
            known = inspect.signature(make, eval_str=True).parameters.values()
            needed = {p.name: GIVEN.get(p.annotation) for p in known if p.default is p.empty}
            for p in known:
                if p.annotation in types and None not in needed.values():
                    call = lambda v, make=make, given=needed, name=p.name: make(**given | {name: v})
                    found[f"{name} {p.name}"] = call
    return found


FLOATS = parameters(TABLES.values(), float, Rate) | {
    "clipped_value_and_grad": lambda v: fnn.per_example.clipped_value_and_grad(NETWORK, fnn.mse, v),
    "add_noise": lambda v: fnn.per_example.add_noise({}, KEY, v),
    "kfac": lambda v: fnn.curvature.kfac(0.1, damping=v),
}
COUNTS = parameters([catalog.COMBINATORS, catalog.WRAPPERS], int) | {
    "make_epoch": lambda v: fnn.make_epoch(NETWORK, fnn.mse, fnn.sgd(0.1), v),
    "make_train": lambda v: fnn.make_train(NETWORK, fnn.mse, fnn.sgd(0.1), 5, v),
    "fit": lambda v: fnn.fit(
        NETWORK, fnn.mse, fnn.sgd(0.1), DATA, key=KEY, epochs=v, batch_size=3
    ),
}  # fmt: skip
NUMBERS = [float, np.float16, np.float32, np.float64, jnp.float32, jnp.bfloat16, np.array]
INTEGERS = [int, np.int8, np.int64, np.uint8, jnp.int32, np.array]


def test_every_kind_of_constructor_is_found():
    names = " ".join(FLOATS) + " ".join(COUNTS)
    for name in ("dropout", "huber", "lion", "average", "cosine_decay", "repeat", "accumulate"):
        assert name in names
    assert len(FLOATS) > 40


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_of_any_type_is_looked_at(name):
    """What Python's float is refused for, so are NumPy's and JAX's; what is traced passes."""
    make, caller = FLOATS[name], name.split()[0]
    for number in (*NUMBERS, jnp.asarray):
        make(number(0.5))
        for bad in (-1.0, np.nan):
            if name == "leaky_relu slope" and bad == -1:
                continue  # any finite number
            with pytest.raises(ValueError, match=f"{caller}.*: expected .*, got {number(bad)}"):
                make(number(bad))
    for bad in (True, np.True_, jnp.array(True), "0.5", None, 1j, np.ones(2), [0.5]):
        with pytest.raises(TypeError, match=f"{caller}.*: expected .* to be a number, got "):
            make(bad)
    jax.eval_shape(lambda v: (make(v), v)[1], 0.5)
    with pytest.raises(TypeError, match="to be a number"):
        jax.eval_shape(lambda v: (make(v), v)[1], jnp.ones(2))


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_of_any_type_is_looked_at(name):
    make, caller = COUNTS[name], name.split()[0]
    for number in INTEGERS:
        make(number(2))
        with pytest.raises(ValueError, match=f"{caller}: expected .* of at least 1, got 0"):
            make(number(0))
    for bad in (2.0, np.float32(2), True, np.True_, "2", None, np.ones(1, int), np.array(2.5)):
        with pytest.raises(TypeError, match=f"{caller}: expected .* to be a whole number, got "):
            make(bad)
