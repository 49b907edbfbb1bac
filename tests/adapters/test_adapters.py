"""In and out: optimizers, networks and parameters of other libraries."""

import types
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.verify import check_layer, check_optimizer
from fnn.verify.cases import OPTIMIZERS

KEYS = jax.random.split(jax.random.key(16), 4)
X = jax.random.normal(KEYS[0], (5, 3))
Y = jnp.sin(X[:, :2])
close = partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-5)


# A layer inside what JAX differentiates.

NETWORK = fnn.serial(
    fnn.dense(3, 4),
    fnn.repeat(fnn.skip(fnn.serial(fnn.layer_norm(4), fnn.dense(4, 4), fnn.gelu)), 2),
    fnn.remat(fnn.dense(4, 2)),
    fnn.tanh,
)
PARAMS = NETWORK.init(KEYS[1])
TANGENTS = jax.tree.map(lambda p: jnp.cos(jnp.arange(1.0 * p.size)).reshape(p.shape), (PARAMS, X))


def vdot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def derivatives(apply):
    """All that JAX can make of apply's derivative, in one program."""
    value = lambda params, x: (apply(params, x) ** 3).sum()
    grad = jax.grad(value, (0, 1))
    along = lambda params, x: jax.jvp(value, (params, x), TANGENTS)[1]
    mapped = lambda params, x: jax.vmap(value, (None, 0))(params, x[:, None]).sum()
    scanned = lambda params, x: jax.lax.scan(
        lambda sum, row: (sum + value(params, row), None), 0.0, x
    )[0]

    def f(params, x):
        both = (params, x)
        return {
            "jvp": jax.jvp(apply, both, TANGENTS),
            "grad": grad(*both),
            "jvp of grad": jax.jvp(grad, both, TANGENTS)[1],
            "grad of jvp": jax.grad(along, (0, 1))(*both),
            "jvp of jvp": jax.jvp(along, both, TANGENTS)[1],
            "grad of grad": jax.grad(lambda *both: vdot(grad(*both), TANGENTS), (0, 1))(*both),
            "jacfwd": jax.jacfwd(apply, 1)(params, x[:2]),
            "jacrev": jax.jacrev(apply, 1)(params, x[:2]),
            "linearize": jax.linearize(apply, *both)[1](*TANGENTS),
            "grad of vmap": jax.grad(mapped, (0, 1))(*both),
            "vmap of grad": jax.vmap(jax.grad(value), (None, 0))(params, x[:, None]),
            "vmap of jvp": jax.vmap(lambda t: jax.jvp(lambda x: apply(params, x), (x,), (t,)))(
                jnp.stack([x, x + 1])
            ),
            "grad of scan": jax.grad(scanned, (0, 1))(*both),
            "jvp of grad of scan": jax.jvp(jax.grad(scanned, (0, 1)), both, TANGENTS)[1],
            "grad of checkpoint": jax.grad(jax.checkpoint(value), (0, 1))(*both),
        }

    return f


@pytest.mark.long
def test_differentiable_agrees_with_autodiff_in_every_mode():
    plain = lambda params, x: NETWORK.forward(params, x)[0]
    expected = jax.jit(derivatives(plain))(PARAMS, X)
    close(jax.jit(derivatives(fnn.differentiable(NETWORK)))(PARAMS, X), expected)


def test_both_modes_are_the_layers_own_derivative():
    """A backward that is scaled on purpose shows in both, and in the derivative of the other."""
    layer = fnn.serial(fnn.dense(3, 2), fnn.tanh)
    thrice = lambda *arguments: jax.tree.map(lambda a: 3 * a, layer.backward(*arguments))
    own = fnn.differentiable(
        layer._replace(backward=lambda p, r, dy, reduce=None: thrice(p, r, dy))
    )
    plain = lambda params, x: layer.forward(params, x)[0]
    params, tangent = layer.init(KEYS[2]), jnp.cos(X)
    at = lambda apply: lambda x: apply(params, x)

    def modes(apply):
        jvp = lambda x: jax.jvp(at(apply), (x,), (tangent,))[1]
        return jvp(X), jax.grad(lambda x: at(apply)(x).sum())(X), jax.jvp(jvp, (X,), (X,))[1]

    got, expected = jax.jit(lambda: (modes(own), modes(plain)))()
    close(got, jax.tree.map(lambda a: 3 * a, expected))


def test_reverse_mode_runs_backward_and_needs_no_transpose_of_it():
    """In the backward pass, and no earlier: what remat keeps is its input."""

    def backward(params, x, dy, reduce=fnn.total):
        shape = jax.ShapeDtypeStruct(dy.shape, dy.dtype)
        return (), jax.pure_callback(lambda dy: 2 * np.asarray(dy), shape, dy)

    layer = fnn.Layer(lambda key: (), lambda params, x: (2 * x, ()), backward)
    gradient = jax.grad(lambda x: fnn.differentiable(layer)((), x).sum())(X)
    np.testing.assert_array_equal(gradient, jnp.full_like(X, 2))
    layer = fnn.remat(fnn.mlp((3, 50, 50, 2)))
    params = layer.init(KEYS[2])
    _, pull = jax.vjp(fnn.differentiable(layer), params, X)
    size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    assert size(pull) == size((params, X))


def test_codes_have_no_tangent_and_wrong_gradients_are_refused():
    layer = fnn.serial(fnn.embedding(4, 2), fnn.dense(2, 1))
    params, codes = layer.init(KEYS[2]), jnp.array([1, 1, 3])

    def modes(apply):
        f = lambda params: apply(params, codes)
        return jax.grad(lambda params: f(params).sum())(params), jax.jvp(f, (params,), (params,))

    plain = lambda params, x: layer.forward(params, x)[0]
    close(modes(fnn.differentiable(layer)), modes(plain))
    wrong = fnn.tanh._replace(backward=lambda params, y, dy, reduce=None: ((), dy[0]))
    with pytest.raises(ValueError, match=r"expected a gradient float32\[5, 3\] for x, got float32"):
        jax.grad(lambda x: fnn.differentiable(wrong)((), x).sum())(X)


def test_differentiable_takes_none_among_the_params():
    """None stands where a module has what is no parameter: every eqx.nn.MLP has some."""
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(3, 2, 4, 1, key=KEYS[0])
    layer, x = fnn.from_equinox(module), jax.random.normal(KEYS[1], (5, 3))
    params = layer.init(KEYS[0])
    assert any(leaf is None for leaf in jax.tree.leaves(params, is_leaf=lambda a: a is None))
    ours = lambda params, x: jnp.sin(fnn.differentiable(layer)(params, x)).sum()
    theirs = lambda params, x: jnp.sin(
        jax.vmap(eqx.combine(params, eqx.filter(module, lambda a: not eqx.is_array(a))))(x)
    ).sum()
    for of in (jax.grad, jax.value_and_grad):
        chex.assert_trees_all_close(
            of(ours, (0, 1))(params, x), of(theirs, (0, 1))(params, x), rtol=1e-5, atol=1e-6
        )
    pushed = [jax.jvp(f, (params, x), (params, x))[1] for f in (ours, theirs)]
    np.testing.assert_allclose(*pushed, rtol=1e-5)


def test_differentiable_inside_a_shard_map():
    """Parameters that are the same on all devices get the sum of all examples' gradients."""
    layer = fnn.serial(fnn.dense(3, 4), fnn.frozen(fnn.dense(4, 4)), fnn.tanh)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    params, x = layer.init(KEYS[2]), jnp.concatenate([X, X])
    apply = fnn.differentiable(layer)

    def both(params, x):
        value = lambda params: (apply(params, x) ** 2).sum()
        return jax.grad(value)(params), jax.jvp(apply, (params, x), (params, x))[1]

    spread = jax.shard_map(both, mesh=mesh, in_specs=(whole, split), out_specs=(whole, split))
    close(jax.jit(spread)(params, x), jax.jit(both)(params, x))


# Functions as layers.


def mlp(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def draw(key):
    a, b = jax.random.split(key)
    return {"a": jax.random.normal(a, (3, 4)), "b": jax.random.normal(b, (4, 2))}


FUNCTION, SINGLE = fnn.from_function(draw, mlp), fnn.from_single(draw, mlp)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layer", [FUNCTION, SINGLE], ids=["function", "single"])
def test_a_function_is_a_layer(layer):
    params = layer.init(KEYS[2])
    assert check_layer(layer, params, X).verdict == "pass"
    deep = fnn.serial(fnn.repeat(fnn.skip(fnn.serial(layer, fnn.dense(2, 3))), 2), fnn.dense(3, 2))
    both = jax.jit(
        lambda params: (
            fnn.value_and_grad(deep, fnn.mse)(params, X, Y),
            jax.value_and_grad(fnn.objective(deep, fnn.mse))(params, X, Y),
        )
    )
    got, expected = both(deep.init(KEYS[3]))
    close(got, expected)
    _, history = fnn.fit(layer, fnn.mse, fnn.adam(0.05), (X, Y), key=KEYS[0], epochs=30,
                             batch_size=5)  # fmt: skip
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_residuals_of_a_function_do_not_hold_its_params():
    params = FUNCTION.init(KEYS[2])
    held = jax.tree.leaves(jax.jit(lambda params: FUNCTION.forward(params, X)[1])(params))
    shapes = [a.shape for a in held]
    assert (3, 4) not in shapes
    assert (4, 2) not in shapes


def test_statistics_of_a_function_need_a_function_of_one_example():
    network = fnn.serial(fnn.dense(3, 3), FUNCTION)
    params = network.init(KEYS[2])
    with pytest.raises(TypeError, match=r"from_function\(mlp\): its gradient exists for the whole"):
        fnn.per_example.squared_norms(network, fnn.mse)(params, X, Y)
    single = fnn.serial(fnn.dense(3, 3), SINGLE)

    @jax.jit
    def both(params):
        one = lambda x, y: jax.grad(fnn.objective(network, fnn.mse))(params, x[None], y[None])
        rows = jax.vmap(one)(X, Y)
        flat = jnp.concatenate([g.reshape(5, -1) for g in jax.tree.leaves(rows)], 1)
        norms = fnn.per_example.squared_norms(single, fnn.mse)(params, X, Y)
        gram = fnn.per_example.gram(single, fnn.mse)(params, X, Y)
        clip = fnn.per_example.clipped_value_and_grad(single, fnn.mse, 1e9)(params, X, Y)
        plain = fnn.value_and_grad(network, fnn.mse)(params, X, Y)
        return (norms, gram, clip), ((flat**2).sum(1), flat @ flat.T, plain)

    got, expected = both(params)
    close(got, expected)


def test_functions_that_are_no_layers_are_refused():
    for call, error, message in [
        (lambda: fnn.from_function(draw, 3), TypeError, "expected apply to be a function, got 3"),
        (lambda: fnn.from_single(None, mlp), TypeError, "expected init to be a function, got None"),
        (lambda: SINGLE.forward(draw(KEYS[0]), jnp.ones(())), ValueError, "at least 1 axes"),
        (lambda: fnn.from_single(draw, mlp, -1), ValueError, "ndim of at least 0, got -1"),
        (lambda: FUNCTION.forward({"a": 1}, X), TypeError, r"params\['a'\] is 1"),
        (lambda: fnn.from_equinox(3), TypeError, "expected module to be a function"),
        (lambda: fnn.from_equinox(dict), TypeError, "expected a module, got its class dict"),
        (lambda: fnn.from_optax(fnn.sgd(0.1)), TypeError, "from_optax: .*, got an Optimizer of"),
        (lambda: fnn.from_flax(3, X), TypeError, "expected init and apply, got int"),
    ]:
        with pytest.raises(error, match=message):
            call()


# Equinox and Flax.


@pytest.mark.long
def test_equinox_both_ways():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=KEYS[2])
    layer = fnn.from_equinox(module)
    params = layer.init(KEYS[0])
    assert check_layer(layer, params, X).verdict == "pass"
    np.testing.assert_allclose(layer.forward(params, X)[0], jax.vmap(module)(X), rtol=1e-6)
    step = jax.jit(fnn.make_step(layer, fnn.mse, fnn.sgd(0.1)))
    state, _ = step(fnn.sgd(0.1).init(params), (X, Y))
    trained = eqx.combine(state.params, module)

    loss = lambda module: jnp.mean((jax.vmap(module)(X) - Y) ** 2)
    grads = eqx.filter_grad(loss)(module)
    expected = eqx.apply_updates(module, jax.tree.map(lambda g: -0.1 * g, grads))
    close(jax.vmap(trained)(X), jax.vmap(expected)(X))

    inside = fnn.serial(fnn.dense(4, 4), fnn.tanh)

    class Model(eqx.Module):
        first: eqx.nn.Linear
        params: tuple
        apply: types.FunctionType = eqx.field(static=True)

        def __call__(self, x):
            return self.apply(self.params, self.first(x))

    model = Model(eqx.nn.Linear(3, 4, key=KEYS[0]), inside.init(KEYS[1]), None)

    def derivatives(apply):
        at = Model(model.first, model.params, apply)
        loss = lambda model: jnp.mean(jax.vmap(model)(X) ** 2)
        return eqx.filter_grad(loss)(at).params, eqx.filter_jvp(loss, (at,), (at,))[1]

    plain = derivatives(lambda params, x: inside.forward(params, x)[0])
    close(derivatives(fnn.differentiable(inside)), plain)


def test_flax_both_ways():
    nn = pytest.importorskip("flax.linen")
    inside = fnn.serial(fnn.dense(4, 2), fnn.tanh)

    class Model(nn.Module):
        apply_inside: types.FunctionType

        @nn.compact
        def __call__(self, x):
            return self.apply_inside(self.param("inside", inside.init), nn.Dense(4)(x))

    plain = Model(lambda params, x: inside.forward(params, x)[0])
    layer = fnn.from_flax(Model(fnn.differentiable(inside)), X)
    params = layer.init(KEYS[0])
    chex.assert_trees_all_equal(params, plain.init(KEYS[0], X)["params"])
    assert check_layer(layer, params, X).verdict == "pass"
    apply = lambda params: jnp.mean(plain.apply({"params": params}, X) ** 2)
    got = fnn.value_and_grad(layer, fnn.mse)(params, X, jnp.zeros((5, 2)))
    close(got, jax.value_and_grad(apply)(params))
    with pytest.raises(ValueError, match=r"with params only, got \['batch_stats', 'params'\]"):
        fnn.from_flax(nn.BatchNorm(use_running_average=False), X)
    thinned = fnn.from_flax(nn.Dropout(0.5, deterministic=True), X)  # a module without params
    np.testing.assert_array_equal(thinned.forward(thinned.init(KEYS[0]), X)[0], X)


@pytest.mark.long
def test_nnx_by_split_and_merge():
    nnx = pytest.importorskip("flax.nnx")
    make = lambda key: nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(params=key)), nnx.Param, ...)
    graph, _, rest = make(KEYS[0])
    layer = fnn.from_function(lambda key: make(key)[1], lambda p, x: nnx.merge(graph, p, rest)(x))
    state, history = fnn.fit(layer, fnn.mse, fnn.adam(0.05), (X, Y), key=KEYS[0], epochs=20,
                             batch_size=5)  # fmt: skip
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    trained = nnx.merge(graph, state.params, rest)
    close(layer.forward(state.params, X)[0], trained(X))


# optax: its updates are in test_wrappers.py.


def test_a_raw_transformation_is_told_the_way_in_and_the_checker_takes_it():
    with pytest.raises(TypeError, match=r"make_step: .* wrap it in fnn\.from_optax$"):
        fnn.make_step(NETWORK, fnn.mse, optax.adam(0.1))
    rule, params = OPTIMIZERS["sgd"].rule, jnp.ones(2)
    assert check_optimizer(optax.sgd, rule, params).verdict == "pass"
    assert check_optimizer(optax.sgd(0.1), rule, params, learning_rate=0.1).verdict == "pass"
    assert check_optimizer(optax.sgd(0.1), rule, params, learning_rate=0.2).verdict == "fail"


# PyTorch.


def mlp_state():
    rng = np.random.default_rng(0)
    return {"0.weight": rng.random((4, 3)), "0.bias": rng.random(4), "2.weight": rng.random((2, 4))}


SHAPES = jax.eval_shape(fnn.mlp((3, 4, 2)).init, KEYS[0])


IMAGES = fnn.serial(
    fnn.conv2d(2, 4),
    fnn.batch_norm(4),
    fnn.gelu,
    fnn.max_pool((2, 2)),
    fnn.conv2d(4, 5, (3, 2), (1, 2), "VALID"),
    fnn.flatten(3),
    fnn.dense(5 * 3 * 2, 6),
    fnn.layer_norm(6),
    fnn.gelu,
    fnn.dense(6, 3),
)


def test_torch_both_ways():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    there = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, (3, 2), (1, 2)),
        nn.Flatten(),
        nn.Linear(5 * 3 * 2, 6),
        nn.LayerNorm(6),
        nn.GELU(),
        nn.Linear(6, 3),
    )
    x = torch.randn(7, 2, 10, 8)
    there(x)  # the BatchNorm measures
    for p in there.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ours = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))
    params = fnn.from_torch(there.state_dict(), jax.eval_shape(IMAGES.init, KEYS[0]))
    like = jax.eval_shape(partial(fnn.statistics, IMAGES), params, ours)
    evaluated = fnn.at(IMAGES, statistics=fnn.statistics_from_torch(there.state_dict(), like))
    there.eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            jax.jit(evaluated.forward)(params, ours)[0], there(x), rtol=1e-5, atol=1e-5
        )
        moved = jax.tree.map(lambda p: p + 0.01, params)
        state = fnn.to_torch(moved, there.state_dict())
        there.load_state_dict({name: torch.tensor(a) for name, a in state.items()})
        np.testing.assert_allclose(
            jax.jit(evaluated.forward)(moved, ours)[0], there(x), rtol=1e-5, atol=1e-5
        )
    chex.assert_trees_all_equal(fnn.from_torch(state, params), moved)
    narrow = {name: value.bfloat16() for name, value in there.state_dict().items()}
    close(fnn.from_torch(narrow, params)[0]["W"], moved[0]["W"], rtol=1e-2)


def test_a_dense_layer_beside_a_convolution_keeps_its_columns():
    network = fnn.fork(
        fnn.serial(fnn.conv2d(3, 4, (2, 2)), fnn.flatten(3)),
        fnn.serial(fnn.flatten(3), fnn.dense(12, 8)),
    )
    rng = np.random.default_rng(0)
    state = {"0.weight": rng.random((4, 3, 2, 2)), "1.weight": rng.random((8, 12))}
    like = jax.eval_shape(network.init, KEYS[0])
    with pytest.raises(ValueError, match=r"expected flattened=.* 1 may read"):
        fnn.from_torch(state, like)
    params = fnn.from_torch(state, like, flattened=[])
    np.testing.assert_array_equal(params[1][1]["W"], state["1.weight"].astype(np.float32))
    back = fnn.to_torch(params, state, flattened=[])["1.weight"]
    np.testing.assert_allclose(back, state["1.weight"], rtol=1e-6)
    inside = fnn.serial(fnn.serial(fnn.conv2d(3, 4, (2, 2)), fnn.flatten(3)), fnn.dense(12, 8))
    like = jax.eval_shape(inside.init, KEYS[0])
    flat = state["1.weight"].reshape(8, 4, 3).swapaxes(1, 2).reshape(8, 12)
    got = fnn.from_torch(state, like, flattened=["1"])[1]["W"]
    np.testing.assert_allclose(got, flat, rtol=1e-6)
    images = jax.eval_shape(fnn.fork(fnn.conv2d(3, 4, (2, 2)), fnn.dense(12, 8)).init, KEYS[0])
    with pytest.raises(ValueError, match="expected flattened="):
        fnn.from_torch(state, images)


def test_torch_files_and_names(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = mlp_state()
    by_ten = {f"net.{10 * int(k[0]) + 2}.{k[2:]}": a for k, a in state.items()}  # 2 and 22
    safetensors.save_file(by_ten | {"net.22.bias": np.ones(2)}, tmp_path / "m.safetensors")
    read = safetensors.load_file(tmp_path / "m.safetensors")
    params = fnn.from_torch(read, SHAPES)
    np.testing.assert_array_equal(params[0]["W"], state["0.weight"].astype(np.float32))
    np.testing.assert_array_equal(params[2]["b"], np.ones(2))
    without = fnn.from_torch(state, SHAPES)
    np.testing.assert_array_equal(without[2]["b"], np.zeros(2))
    close(fnn.to_torch(without, state), state)
    nested = {f"0.{k}": a for k, a in state.items() if k[0] == "0"} | {
        "1.weight": state["2.weight"]
    }
    close(fnn.from_torch(nested, SHAPES), without)
    alone = {"weight": state["0.weight"], "bias": state["0.bias"]}
    close(fnn.from_torch(alone, SHAPES[0]), without[0])
    named = {"out": {"weight": state["2.weight"]}, "in": {"weight": state["0.weight"]}}
    got = fnn.from_torch(named, SHAPES, names=["in", "out"])
    np.testing.assert_array_equal(got[2]["W"], without[2]["W"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": np.ones((4, 5))}, r"shape \(4, 3\) for 0.weight, .*'W'\] .*got \(4, 5\)"),
        ({"4.weight": np.ones(2)}, r"2 modules, for params\[0\], params\[2\], got 3: 0, 2, 4"),
        ({"0.scale": np.ones(2)}, "there is no parameter for 0.scale"),
        ({"2.weight": None}, "expected 2 modules"),
        ({"0.weight": None}, r"0.weight is missing, for params\[0\]\['W'\]"),
        ({"head.bias": np.ones(2)}, "the order of the modules 0, 2, head is not in their names"),
    ],
)
def test_torch_states_that_do_not_fit_are_refused(change, message):
    state = {k: a for k, a in (mlp_state() | change).items() if a is not None}
    with pytest.raises(ValueError, match=message):
        fnn.from_torch(state, SHAPES)


def test_what_torch_has_no_place_for_is_refused():
    with pytest.raises(ValueError, match=r"2.bias is missing, and params\[2\]\['b'\] is not 0"):
        fnn.to_torch(jax.tree.map(jnp.ones_like, fnn.mlp((3, 4, 2)).init(KEYS[0])), mlp_state())
    with pytest.raises(ValueError, match=r"expected params of dense, .*got params\['a'\]"):
        fnn.from_torch(mlp_state(), draw(KEYS[0]))
    flattened = fnn.serial(fnn.conv2d(1, 2), fnn.flatten(3), fnn.layer_norm(8))
    state = {"0.weight": np.ones((2, 1, 3, 3)), "2.weight": np.ones(8)}
    with pytest.raises(ValueError, match="from_torch: 2 normalises flattened images"):
        fnn.from_torch(state, jax.eval_shape(flattened.init, KEYS[0]))
    with pytest.raises(TypeError, match="expected a dict of arrays by name, got list"):
        fnn.from_torch([], SHAPES)
    with pytest.raises(ValueError, match="expected 1 arrays of means and variances, got 0"):
        fnn.statistics_from_torch(mlp_state(), jnp.ones(2))
    with pytest.raises(ValueError, match="missing '2'"):
        fnn.from_torch(mlp_state(), SHAPES, names=["0"])


def test_a_loss_of_a_value_alone_has_autodiffs_gradient():
    loss = fnn.from_loss(fnn.gaussian_nll.value)
    p, t = jax.random.normal(jax.random.key(0), (2, 5, 4))
    np.testing.assert_allclose(
        loss.gradient(p, t[:, :2]), fnn.gaussian_nll.gradient(p, t[:, :2]), rtol=1e-5, atol=1e-6
    )
    tree = fnn.from_loss(lambda p, t: (p["a"] * p["b"] - t).sum(-1) ** 2)
    got = tree.gradient({"a": p, "b": t}, p)
    np.testing.assert_allclose(got["a"], 2 * (p * t - p).sum(-1, keepdims=True) * t, rtol=1e-4)
    step = fnn.make_step(fnn.dense(4, 4), loss, fnn.sgd(0.01))
    state = fnn.sgd(0.01).init(fnn.dense(4, 4).init(jax.random.key(1)))
    state, before = step(state, (p, t[:, :2]))
    assert step(state, (p, t[:, :2]))[1] < before
    with pytest.raises(TypeError, match="from_loss: expected value"):
        fnn.from_loss(fnn.mse.value(p, t))
