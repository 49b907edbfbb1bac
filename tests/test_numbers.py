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
                several = p.kind is p.VAR_POSITIONAL
                if p.annotation in types and not several and None not in needed.values():
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
del COUNTS["on i"]  # an index: it may be 0
WIDTHS = parameters([catalog.LAYERS], int)
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


@pytest.mark.sampled(3)
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


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_of_any_type_is_looked_at(name):
    make = WIDTHS[name]
    for number in INTEGERS:
        make(number(2))
        with pytest.raises(ValueError, match="at least 1"):
            make(number(0))
    for bad in (2.5, True, np.True_, "2", None, np.ones(1, int), np.array(2.5)):
        with pytest.raises((TypeError, ValueError), match="whole number"):
            make(bad)


LAYERS = {
    "dropout": (lambda v: fnn.at(fnn.dropout(v), KEY), np.float16, 0.5),
    "elu": (fnn.elu, np.float32, 0.5),
    "leaky_relu": (fnn.leaky_relu, np.float32, 0.5),
    "layer_norm": (lambda v: fnn.layer_norm(16, eps=v), np.float32, 0.5),
    "batch_norm": (lambda v: fnn.at(fnn.batch_norm(16, eps=v), KEY), np.float32, 0.5),
    "rms_norm": (lambda v: fnn.rms_norm(16, eps=v), np.float32, 0.5),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_a_number_of_numpys_is_the_same_as_pythons(name, dtype):
    """It neither rounds, as 0.5 * 2^32 would in float16, nor widens what it meets."""
    make, number, value = LAYERS[name]
    x = jnp.linspace(-3, 3, 64).reshape(4, 16).astype(dtype)
    found = []
    for v in (value, number(value), np.float64(value), jnp.float32(value)):
        layer = make(v)
        params = jax.tree.map(lambda p: p.astype(dtype), layer.init(KEY))
        y, residuals = layer.forward(params, x)
        dx = layer.backward(params, residuals, jnp.ones_like(y))[1]
        found.append((y, dx))
        assert y.dtype == dx.dtype == dtype
    assert (np.asarray(found[0][0], np.float32) != np.asarray(x, np.float32)).any()
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_hubers_delta_of_numpys_does_not_widen():
    p, t = jnp.linspace(-3, 3, 8, dtype=jnp.bfloat16).reshape(4, 2), jnp.zeros((4, 2), jnp.bfloat16)
    loss = fnn.huber(np.float32(0.5))
    assert loss.value(p, t).dtype == fnn.huber(0.5).value(p, t).dtype
    assert loss.gradient(p, t).dtype == jnp.bfloat16


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", catalog.OPTIMIZERS)
def test_a_rules_numbers_of_numpys_are_pythons(name):
    make = catalog.OPTIMIZERS[name]
    defaults = {p.name: p.default for p in inspect.signature(make).parameters.values()}
    defaults = {k: v for k, v in defaults.items() if isinstance(v, float)}
    for number in (np.float32, np.float64):
        with jax.enable_x64(True):
            ours, theirs = (
                make(float(number(0.1)), **{k: float(number(v)) for k, v in defaults.items()}),
                make(number(0.1), **{k: number(v) for k, v in defaults.items()}),
            )
            for dtype in (jnp.float32, jnp.float64):
                g = jnp.ones((2, 2), dtype)
                states = [rule.update(rule.init(g), g) for rule in (ours, theirs)]
                jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *states)


EIGHT = np.int8(16)


@pytest.mark.long
def test_whole_numbers_of_a_narrow_type_do_not_wrap():
    x = jnp.ones((2, 16, 16, 1))
    layer = fnn.mean_pool((EIGHT, EIGHT))
    np.testing.assert_array_equal(layer.forward((), x)[0], jnp.ones((2, 1, 1, 1)))
    assert (fnn.max_pool((EIGHT, EIGHT)).forward((), x)[0] == 1).all()
    assert (
        fnn.unflatten(EIGHT, EIGHT, np.int8(1)).forward((), x.reshape(2, 256))[0].shape == x.shape
    )
    network = fnn.cnn((np.int8(64), np.int8(64), np.int8(1)), [np.int8(8)], np.int8(3))
    params = network.init(KEY)
    assert network.forward(params, jnp.ones((2, 64, 64, 1)))[0].shape == (2, 3)
    conv = fnn.conv2d(EIGHT, EIGHT, (np.int8(3), np.int8(3)), (EIGHT, EIGHT))
    assert conv.forward(conv.init(KEY), jnp.ones((2, 40, 40, 16)))[0].shape == (2, 3, 3, 16)
    attention = fnn.attention(np.int8(64), np.int8(4))
    assert attention.forward(attention.init(KEY), jnp.ones((2, 5, 64)))[0].shape == (2, 5, 64)


@pytest.mark.long
def test_training_counts_of_a_narrow_type_do_not_wrap():
    network, data = fnn.mlp((3, 2)), (np.ones((300, 3), np.float32), np.ones((300, 2), np.float32))
    optimizer = fnn.sgd(0.1)
    state = optimizer.init(network.init(KEY))
    epoch = fnn.make_epoch(network, fnn.mse, optimizer, np.int8(100))
    assert int(epoch(state, data, KEY)[0].step) == 3
    train = fnn.make_train(network, fnn.mse, optimizer, np.int8(100), np.int8(100))
    assert int(train(state.params, data, KEY)[0].step) == 300
    state, history = fnn.fit(
        network, fnn.mse, optimizer, data, key=KEY, epochs=np.int8(2), batch_size=np.int8(100)
    )
    assert (int(state.step), len(history)) == (6, 2)


def test_a_rate_of_dropout_may_be_mapped():
    x = jnp.ones((4, 1000))
    dropped = lambda rate: (fnn.at(fnn.dropout(rate), KEY).forward((), x)[0] == 0).mean()
    rates = jnp.array([0.0, 0.25, 0.9])
    np.testing.assert_allclose(jax.vmap(dropped)(rates), rates, atol=0.03)
    np.testing.assert_allclose(jax.vmap(dropped)(rates), [dropped(float(r)) for r in rates])
