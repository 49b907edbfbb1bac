"""What optax's, Equinox's, Opacus' and BackPACK's own tests expect, asked of fnn.

The expectations are theirs, the tests are not: `docs/ecosystem.md` has the table.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import per_example

pytestmark = pytest.mark.long

RULES = {
    "sgd": fnn.sgd(1e-3),
    "momentum": fnn.momentum(1e-3),
    "nesterov": fnn.momentum(1e-3, nesterov=True),
    "rmsprop": fnn.rmsprop(5e-3),
    "adam": fnn.adam(1e-2),
    "adamw": fnn.adamw(1e-2, weight_decay=1e-4),
    "adagrad": fnn.adagrad(1.0),
    "lion": fnn.lion(2e-3, weight_decay=0.0),
    "nadam": fnn.nadam(1e-2),
}
THEIRS = {
    "adam": optax.adam(1e-2),
    "adamax": optax.adamax(1e-2),
    "amsgrad": optax.amsgrad(1e-2),
    "lamb": optax.lamb(1e-3),
    "radam": optax.radam(5e-3),
    "yogi": optax.yogi(1e-2),
    "sm3": optax.sm3(1.0),
    "novograd": optax.novograd(1e-3),
}


def parabola(params):
    return jnp.sum(jnp.square(params - jnp.array([1.0, -1.0, 1.0])))


def rosenbrock(params):
    return jnp.square(1 - params[0]) + 100 * jnp.square(params[1] - params[0] ** 2)


TARGETS = {
    "parabola": (parabola, [-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]),
    "rosenbrock": (rosenbrock, [0.0, 0.0], [1.0, 1.0]),
}


def minimised(transformation, f, start, steps=10_000):
    """The parameters after steps of an optax transformation, in float32."""

    def step(carry, _):
        params, state = carry
        updates, state = transformation.update(jax.grad(f)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (jnp.array(start), transformation.init(jnp.array(start)))
    return jax.lax.scan(step, carry, length=steps)[0][0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rule", RULES)
def test_optax_minimises_by_our_rules(rule, target):
    """alias_test: each rule finds the minimum of a parabola and of Rosenbrock's function."""
    f, start, end = TARGETS[target]
    found = jax.jit(lambda: minimised(fnn.to_optax(RULES[rule]), f, start))()
    np.testing.assert_allclose(found, end, rtol=0.06, atol=0.06)


@pytest.mark.parametrize("rule", THEIRS)
def test_we_minimise_by_their_rules(rule):
    f, start, end = TARGETS["parabola"]
    ours = fnn.from_optax(THEIRS[rule])

    def step(state, _):
        return ours.update(state, jax.grad(f)(state.params)), None

    state, _ = jax.jit(lambda: jax.lax.scan(step, ours.init(jnp.array(start)), length=10_000))()
    np.testing.assert_allclose(state.params, end, rtol=0.06, atol=0.06)
    assert state.step == 10_000


@pytest.mark.parametrize("rule", RULES)
def test_ours_inside_of_optax_wrappers(rule):
    """wrappers_test and combine_test: chain, masked, MultiSteps and inject_hyperparams."""
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    ours = fnn.to_optax(RULES[rule])

    def change(transformation, times=1):
        state = transformation.init(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            for _ in range(times):
                updates, state = jax.jit(transformation.update)(grads, state, params)
        return updates

    def close(a, b):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), a, b)

    plain = change(ours)
    close(change(optax.chain(optax.identity(), ours)), plain)
    halved = change(optax.chain(ours, optax.scale(0.5)))
    close(halved, jax.tree.map(lambda u: u / 2, plain))
    several = optax.MultiSteps(ours, every_k_schedule=2)
    close(change(several, 1), jax.tree.map(jnp.zeros_like, plain))
    close(change(several, 2), plain)
    only = change(optax.masked(ours, {"a": True, "b": False}))
    close(only, {"a": plain["a"], "b": grads["b"]})
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, params)


def test_a_rate_of_ours_is_injected_by_optax():
    rule = optax.inject_hyperparams(lambda learning_rate: fnn.to_optax(fnn.sgd(learning_rate)))
    transformation = rule(learning_rate=0.5)
    params = jnp.ones(2)
    state = transformation.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    updates, _ = transformation.update(params, state, params)
    np.testing.assert_allclose(updates, -0.25 * params)


KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 6))


def test_equinox_layers_expect_what_ours_return():
    """test_nn: shapes, and values where the weights are the same."""
    linear = eqx.nn.Linear(6, 3, key=KEY)
    got, _ = fnn.dense(6, 3).forward({"W": linear.weight, "b": linear.bias}, X)
    np.testing.assert_allclose(got, jax.vmap(linear)(X), rtol=1e-5, atol=1e-6)
    for ours, theirs in [
        (fnn.layer_norm(6), eqx.nn.LayerNorm(6)),
        (fnn.rms_norm(6), eqx.nn.RMSNorm(6, use_bias=False)),
    ]:
        got, _ = ours.forward(ours.init(KEY), X)
        np.testing.assert_allclose(got, jax.vmap(theirs)(X), rtol=1e-4, atol=1e-5)
    table = eqx.nn.Embedding(7, 4, key=KEY)
    codes = jnp.array([0, 6, 3])
    layer = fnn.embedding(7, 4)
    like = jax.tree.map(jnp.shape, layer.init(KEY))
    params = jax.tree.unflatten(jax.tree.structure(layer.init(KEY)), [table.weight])
    assert jax.tree.leaves(like, is_leaf=lambda a: isinstance(a, tuple)) == [(7, 4)]
    np.testing.assert_array_equal(layer.forward(params, codes)[0], jax.vmap(table)(codes))
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    pooled, _ = fnn.max_pool((2, 2)).forward((), images)
    expected = jax.vmap(eqx.nn.MaxPool2d(2, 2))(images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pooled.transpose(0, 3, 1, 2), expected)


def test_an_equinox_module_as_a_layer_passes_what_ours_pass():
    module = eqx.nn.MLP(6, 2, 8, 1, activation=jnp.tanh, key=KEY)
    layer = fnn.from_equinox(module)
    params = layer.init(KEY)
    y = jnp.zeros((5, 2))
    _, grads = fnn.value_and_grad(layer, fnn.mse)(params, X, y)

    def loss(module):
        return jnp.mean(jnp.square(jax.vmap(module)(X) - y))

    expected = eqx.filter_grad(loss)(module)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_statistics_are_those_of_the_gradients_of_single_examples():
    """Opacus' grad_samples tests and BackPACK's BatchL2, SumGradSquared and Variance tests compare
    with one example at a time, by another library's autodiff: here PyTorch's."""
    torch = pytest.importorskip("torch")
    network = fnn.mlp((6, 5, 3), fnn.tanh)
    params = network.init(KEY)
    labels = np.array([0, 1, 2, 1, 0])
    there = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    state = fnn.to_torch(params, there.state_dict())
    there.load_state_dict({name: torch.tensor(np.array(a)) for name, a in state.items()})
    rows = []
    for x, label in zip(np.array(X), labels, strict=True):
        there.zero_grad()
        z = there(torch.tensor(x)[None])
        torch.nn.functional.cross_entropy(z, torch.tensor([label])).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in there.parameters()]))
    rows = np.stack(rows)
    at = (params, X, jnp.asarray(labels))
    squared = per_example.squared_norms(network, fnn.softmax_cross_entropy)(*at)
    np.testing.assert_allclose(squared, (rows**2).sum(1), rtol=1e-4)
    gram = per_example.gram(network, fnn.softmax_cross_entropy)(*at)
    np.testing.assert_allclose(gram, rows @ rows.T, rtol=1e-4, atol=1e-5)
    moment = per_example.second_moment(network, fnn.softmax_cross_entropy)(*at)
    flat = fnn.to_torch(moment, there.state_dict())
    names = [name for name, _ in there.named_parameters()]
    got = np.concatenate([np.ravel(flat[name]) for name in names])
    np.testing.assert_allclose(got, (rows**2).mean(0), rtol=1e-4, atol=1e-7)
    bound = float(np.median(np.sqrt((rows**2).sum(1))))
    _, clipped = per_example.clipped_value_and_grad(network, fnn.softmax_cross_entropy, bound)(*at)
    factors = np.minimum(1, bound / np.sqrt((rows**2).sum(1)))
    expected = (factors[:, None] * rows).mean(0)
    flat = fnn.to_torch(clipped, there.state_dict())
    got = np.concatenate([np.ravel(flat[name]) for name in names])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
