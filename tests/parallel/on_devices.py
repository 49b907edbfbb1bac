"""`fnn.parallel` on 8 virtual devices against one: `test_parallel.py` runs these in a process.

By hand: FNN_TEST_DEVICES=8 python -m pytest -n 0 tests/parallel/on_devices.py
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import fnn
from fnn import parallel
from fnn.parallel import ShardedExamples, copy_to, fully_sharded, replicated, sharded, sum_over
from fnn.training.fitting import Progress
from fnn.training.mesh import Devices
from fnn.verify.cases import LAYERS

KEY = jax.random.key(3)
SIZES = (16, 32, 24, 10)
DATA = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
BOTH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

_random = np.random.default_rng(0)
X = _random.standard_normal((103, 16)).astype(np.float32)
Y = _random.integers(0, 10, 103)
DENSE = fnn.serial(fnn.dense(16, 16), fnn.tanh)
MLP = fnn.mlp(SIZES)
CUT = parallel.mlp(SIZES, "model")
BLOCK = fnn.serial(
    parallel.column_dense(16, 8, "model"), fnn.tanh, parallel.row_dense(8, 16, "model")
)
PLAIN_BLOCK = fnn.serial(fnn.dense(16, 8), fnn.tanh, fnn.dense(8, 16))


def difference(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in leaves)


def parts(state):
    """The share of each array's entries that one device holds."""
    return [a.addressable_shards[0].data.size / a.size for a in jax.tree.leaves(state) if a.ndim]


@pytest.fixture(scope="module")
def alone():
    """Six steps of Adam on one device, by network: (state, losses)."""
    known = {}

    def run(name, network):
        if name not in known:
            optimizer = fnn.clip_by_global_norm(fnn.adam(0.01), 0.5)
            train = fnn.make_train(network, fnn.softmax_cross_entropy, optimizer, 103, 6)
            known[name] = jax.jit(train)(network.init(KEY), (X, Y), KEY)
        return known[name]

    return run


def deep(block):
    """As many copies as there are devices, and yet no array is cut along them."""
    return fnn.serial(fnn.repeat(block, 8), fnn.dense(16, 10))


METHODS = {
    "replicated": ("mlp", MLP, MLP, DATA, False),
    "fully sharded": ("mlp", MLP, MLP, DATA, True),
    "tensor": ("mlp", MLP, CUT, BOTH, False),
    "fully sharded by tensor": ("mlp", MLP, CUT, BOTH, True),
    "repeat": ("deep", deep(DENSE), deep(fully_sharded(DENSE, "data")), DATA, False),
    "repeat, remat": (
        "deep",
        deep(DENSE),
        deep(fnn.remat(fully_sharded(DENSE, "data"))),
        DATA,
        False,
    ),
    "around repeat": ("deep", deep(DENSE), deep(DENSE), DATA, True),
    "around replicated": ("deep", deep(DENSE), deep(replicated(DENSE, "data")), DATA, True),
    "repeat, remat, tensor": (
        "blocks",
        deep(PLAIN_BLOCK),
        deep(fnn.remat(fully_sharded(BLOCK, "data"))),
        BOTH,
        True,
    ),
}


DEFAULT = ("fully sharded by tensor", "around replicated", "repeat, remat, tensor")
every_method = [
    pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.long]) for name in METHODS
]


@pytest.mark.parametrize("method", every_method)
def test_six_steps_are_those_of_one_device(alone, method):
    """103 examples in one batch, which 8 devices don't divide; a norm over all parameters."""
    name, plain, network, mesh, shard_params = METHODS[method]
    optimizer = fnn.clip_by_global_norm(fnn.adam(0.01), 0.5)
    train = fnn.make_train(
        network, fnn.softmax_cross_entropy, optimizer, 103, 6, mesh=mesh, shard_params=shard_params
    )
    state, losses = jax.jit(train)(plain.init(KEY), (X, Y), KEY)
    expected, expected_losses = alone(name, plain)
    assert difference(losses, expected_losses) < 2e-6
    assert difference(state.params, expected.params) < 2e-5
    of = lambda tree: [a.sharding.spec for a in jax.tree.leaves(tree)]
    assert of(state.m) == of(state.v) == of(state.params)
    smallest = {"replicated": 1, "tensor": 1 / 2}.get(method, 1 / 8)
    assert min(parts(state)) == smallest
    assert max(parts(state)) == 1


def shard_mapped(f, mesh, in_specs, out_specs):
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def test_backward_is_the_vjp_of_all_devices_examples():
    """In a program of one's own: the sum over the devices, the optimizer's norm over all parts,
    and each device's part of the params from `init` itself."""
    optimizer = fnn.scale_loss(fnn.clip_by_global_norm(fnn.momentum(0.1), 0.01), 1.0)
    network = fully_sharded(CUT, "data")
    init = lambda key: optimizer.init(network.init(key))
    specs = parallel.specs(init, BOTH)

    def program(key, x, y):
        state = init(key)
        value, grads = fnn.value_and_grad(network, fnn.softmax_cross_entropy)(state.params, x, y)
        return optimizer.update(state, grads), jax.lax.pmean(value, "data")

    run = shard_mapped(program, BOTH, (P(), P("data"), P("data")), (specs, P()))
    state, value = run(KEY, X[:40], Y[:40])

    @jax.jit
    def alone(key, x, y):
        state = optimizer.init(MLP.init(key))
        value, grads = fnn.value_and_grad(MLP, fnn.softmax_cross_entropy)(state.params, x, y)
        return optimizer.update(state, jax.tree.map(lambda g: 4 * g, grads)), value

    expected, expected_value = alone(KEY, X[:40], Y[:40])
    assert difference(state, expected) < 1e-6
    assert difference(value, expected_value) < 1e-6
    assert min(parts(state)) == 1 / 8


@pytest.mark.parametrize("wrap", [pytest.param(replicated, marks=pytest.mark.long), fully_sharded])
def test_per_example_gradients(wrap):
    """Each example's norm, over params on several devices; clipped, summed over all devices."""
    network = wrap(CUT, "data")
    specs = parallel.specs(network.init, BOTH)
    norms = fnn.per_example.squared_norms(network, fnn.softmax_cross_entropy)
    clipped = fnn.per_example.clipped_value_and_grad(network, fnn.softmax_cross_entropy, 0.5)
    f = lambda p, x, y: (norms(p, x, y), clipped(p, x, y)[1])
    run = shard_mapped(f, BOTH, (specs, P("data"), P("data")), (P("data"), specs))
    params = MLP.init(KEY)
    got = run(params, X[:40], Y[:40])
    squares = fnn.per_example.squared_norms(MLP, fnn.softmax_cross_entropy)(params, X[:40], Y[:40])
    _, grads = fnn.per_example.clipped_value_and_grad(MLP, fnn.softmax_cross_entropy, 0.5)(
        params, X[:40], Y[:40]
    )
    assert difference(got[0], squares) < 1e-4
    assert difference(got[1], jax.tree.map(lambda g: 4 * g, grads)) < 1e-5


def test_conjugate_layers_and_a_block_made_of_them():
    """The Megatron block by hand, its norms included; a parameter whose gradient differs between
    devices is refused."""
    hidden = sharded(lambda n: fnn.dense(16, 8 // n), "model")
    out = sharded(lambda n: fnn.dense(8 // n, 4), "model")
    block = fnn.serial(copy_to("model"), hidden, fnn.tanh, out, sum_over("model"))
    plain = fnn.serial(fnn.identity, fnn.dense(16, 8), fnn.tanh, fnn.dense(8, 4), fnn.identity)
    params = plain.init(KEY)
    params[3]["b"] = jnp.zeros(4)  # else each device would add it
    specs = parallel.specs(block.init, BOTH)
    assert specs[1] == {"W": P("model"), "b": P("model")}
    assert specs[3]["W"] == P(None, "model")

    def backward(layer):
        def f(params, x):
            y, residuals = layer.forward(params, x)
            return y, *layer.backward(params, residuals, jnp.ones_like(y))

        return f

    y, dparams, dx = shard_mapped(backward(block), BOTH, (specs, P()), (P(), specs, P()))(params, X)
    assert difference((y, dparams, dx), backward(plain)(params, X)) < 1e-4
    squares = fnn.per_example.squared_norms(block, fnn.mse)
    got = shard_mapped(squares, BOTH, (specs, P(), P()), P())(params, X, X[:, :4])
    expected = fnn.per_example.squared_norms(plain, fnn.mse)(params, X, X[:, :4])
    assert difference(got, expected) < 1e-4
    gain = sharded(lambda n: fnn.serial(fnn.dense(16, 8 // n), fnn.dense(8 // n, 4)), "model")
    wrong = fnn.serial(copy_to("model"), gain, fnn.tanh, sum_over("model"))
    specs = parallel.specs(wrong.init, BOTH)
    ours = shard_mapped(backward(wrong), BOTH, (specs, P()), (P(), specs, P()))
    with pytest.raises(ValueError, match=r"sharded: params \(4,\) are replicated over"):
        ours(wrong.init(KEY), X)


def test_a_layer_is_cut_once():
    """Around what is cut over "data" already it leaves that alone; and each device holds its part
    of a state from the start."""
    once = fully_sharded(fnn.dense(16, 16), "data")
    for network in (once, fully_sharded(once, "data"), fully_sharded(fnn.skip(once), "data")):
        assert parallel.specs(network.init, DATA) == {"W": P("data"), "b": P("data")}
    devices = Devices.of("test", DATA, shard_params=True)
    network, optimizer = devices.place(fnn.dense(16, 16), fnn.adam(0.1))
    assert max(parts(optimizer.init(network.init(KEY)))) == 1 / 8


def test_arrays_are_cut_along_their_rows():
    """What is cut along its columns has to be transposed, to be gathered and after it."""
    cut = lambda network: parallel.specs(fully_sharded(network, "data").init, DATA)
    assert cut(fnn.dense(24, 16)) == {"W": P("data"), "b": P("data")}
    assert cut(fnn.dense(16, 10)) == {"W": P(None, "data"), "b": P()}
    twice = fnn.repeat(fnn.repeat(fnn.dense(16, 16), 8), 8)
    assert cut(twice) == {"W": P(None, None, "data"), "b": P(None, None, "data")}
    assert cut(fnn.embedding(8000, 50)) == {"table": P("data")}
    matrix, gain = (
        fnn.identity._replace(init=lambda key, shape=shape: jnp.ones(shape))
        for shape in ((16, 8), (8,))
    )
    both = fnn.serial(fnn.repeat(matrix, 8), gain)
    assert cut(both) == (P(None, None, "data"), P("data"))


def test_mistakes_are_named():
    inside = lambda f, mesh=DATA: shard_mapped(f, mesh, P(), P())
    for layer in (
        replicated(MLP, "model"), fully_sharded(MLP, "model"), copy_to("model"),
        sum_over("model"), sharded(lambda n: fnn.dense(16, 16 // n), "model"),
    ):  # fmt: skip
        params = layer.init(KEY)
        with pytest.raises(ValueError, match=r"expected a mapped axis 'model', got \['data'\]"):
            inside(lambda x, layer=layer, p=params: layer.forward(p, x)[0])(X)
    odd = sharded(lambda n: fnn.dense(16, 9 // n), "model")
    with pytest.raises(ValueError, match="sharded: expected .* equal parts"):
        inside(lambda x: odd.forward(odd.init(KEY), x)[0], BOTH)(X)
    bad = jax.tree.map(lambda a: a[:1], MLP.init(KEY))
    with pytest.raises(ValueError, match="fully_sharded: expected .* 8 equal parts"):
        inside(lambda x: fully_sharded(MLP, "data").forward(bad, x)[0])(X)
    layer = fully_sharded(fnn.repeat(fnn.layer_norm(5), 8), "data")
    with pytest.raises(ValueError, match=r"repeat\(fully_sharded"):
        fnn.make_step(layer, fnn.mse, fnn.sgd(0.1), mesh=DATA)(
            fnn.sgd(0.1).init(layer.init(KEY)), (X[:8, :5], X[:8, :5])
        )


def record(state, grads, value):
    return {"norm": jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))}


def fits(data, batch_size, epochs, **options):
    """(state, history) of the same run on one device, and on eight."""
    for where in ({}, {"mesh": jax.make_mesh((4, 2), ("data", "model")), "shard_params": True}):
        network = CUT if where else MLP
        yield fnn.fit(
            network, fnn.softmax_cross_entropy, fnn.adam(0.05), data, key=KEY, epochs=epochs,
            batch_size=batch_size, record=record, **options, **where,
        )  # fmt: skip


def test_fit_on_a_mesh_is_fit(monkeypatch):
    """Of full batches, with validation, metrics, patience and record."""
    monkeypatch.setattr(
        fnn.training.evaluation, "CHUNK", 3
    )  # each device predicts in several chunks
    accuracy = lambda prediction, y: (prediction.argmax(-1) == y).astype(jnp.float32)
    options = {"validation": (X[:37], Y[-37:]), "metrics": {"accuracy": accuracy}, "patience": 2}
    (one, history), (many, again) = fits((X, Y), 103, 8, **options)
    assert len(history) == len(again)
    assert int(one.step) == int(many.step) < len(history)
    assert difference(history, again) < 1e-5
    assert difference(one.params, many.params) < 2e-5


def test_a_gradient_and_weights_on_a_mesh_are_those_of_one_device():
    """Of 103 examples, which 8 devices don't divide, the params split too."""
    own = fnn.gradients.sam(fnn.gradients.of(MLP, fnn.softmax_cross_entropy), 0.2)
    weight = np.linspace(0, 2, 103, dtype=np.float32)
    many = {"mesh": DATA, "shard_params": True}
    for research in ({"gradient": own}, {}):
        states = [
            fnn.fit(
                MLP, fnn.softmax_cross_entropy, fnn.adam(0.05), (X, Y, weight), key=KEY, epochs=3,
                batch_size=103, validation=(X, Y, weight), **research, **where,
            )
            for where in ({}, many)
        ]  # fmt: skip
        (one, history), (two, again) = states
        assert difference(history, again) < 1e-5
        assert difference(one.params, two.params) < 2e-5
        assert min(parts(two.params)) == 1 / 8


@pytest.mark.long
def test_streamed_batches_are_split():
    """In groups, and the last one small."""
    stream = [(X[i : i + 24], Y[i : i + 24]) for i in range(0, 103, 24)]
    (one, history), (many, again) = fits(stream * 5, None, 2)
    assert history[0]["record"]["norm"].shape == (25,)
    assert difference(history, again) < 1e-4
    assert difference(one.params, many.params) < 1e-4


@pytest.mark.parametrize(
    "sizes",
    [
        [(103, 24), (9, 8)],
        pytest.param([(96, 8), (97, 48), (103, 56), (600, 96)], marks=pytest.mark.long),
    ],
)
def test_every_example_is_used_once_and_each_device_shuffles(sizes):
    """At a learning rate too small to move, the mean over an epoch is the mean over the data;
    24 divides neither 103 nor the shares, so the last batch is small and has repeated examples."""
    optimizer = fnn.sgd(1e-30)
    mean = fnn.objective(MLP, fnn.softmax_cross_entropy)
    state = optimizer.init(MLP.init(KEY))
    for n, batch_size in sizes:
        epoch = jax.jit(
            fnn.make_epoch(
                MLP, fnn.softmax_cross_entropy, optimizer, batch_size, mesh=DATA, record=record
            )
        )
        x, y = np.resize(X, (n, 16)), np.resize(Y, n)
        after, (value, noted) = epoch(state, (x, y), KEY)
        assert int(after.step) == len(noted["norm"]) == -(-n // batch_size)
        assert abs(float(value - mean(state.params, x, y))) < 2e-6
        _, (_, other) = epoch(state, (x, y), jax.random.key(4))
        assert difference(noted, other) > 1e-4  # another order, other batches


def test_arrays_split_by_their_types():
    """Explicit axes, as `jax.make_mesh` makes them: gradients by these types, and `fit`."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    network = fnn.serial(fnn.repeat(DENSE, 2), fnn.layer_norm(16), fnn.dense(16, 10))
    gradient = fnn.value_and_grad(network, fnn.softmax_cross_entropy)
    params = network.init(KEY)
    split = NamedSharding(mesh, P("data"))
    x, y = (jax.device_put(a[:40], split) for a in (X, Y))
    with jax.set_mesh(mesh):
        got = jax.jit(gradient)(params, x, y)
    assert difference(got, jax.jit(gradient)(params, X[:40], Y[:40])) < 1e-6
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"explicit axes \('data', 'model'\)"):
        fnn.make_step(MLP, fnn.mse, fnn.sgd(0.1), mesh=mesh)
    shares = ShardedExamples.of((x, y), mesh)
    assert difference(shares.arrays, (X[:40], Y[:40])) == 0


def test_shares_keep_the_order():
    for n in (8, 9, 15, 103):
        shares = ShardedExamples.of((X[:n], Y[:n]), DATA)
        assert all(len(a) == 8 * shares.rows for a in jax.tree.leaves(shares.arrays))
        assert difference(shares.examples(shares.arrays), (X[:n], Y[:n])) == 0
        weights = [np.broadcast_to(shares.weights(i), shares.rows) for i in range(8)]
        kept = jax.tree.map(np.asarray, shares.arrays[0])[np.concatenate(weights) > 0]
        assert difference(kept, X[:n]) == 0
        assert abs(np.sum(weights) / shares.rows - 1) < 1e-6


def test_each_device_draws_its_own_dropout():
    """One equal example per device, whose row of dW is its mask."""
    network = fnn.serial(fnn.dropout(0.5), fnn.dense(64, 8))
    optimizer = fnn.sgd(1.0)
    step = jax.jit(fnn.make_step(network, fnn.mse, optimizer, mesh=DATA, record=lambda s, g, v: g))
    state = optimizer.init(jax.tree.map(jnp.zeros_like, network.init(KEY)))
    _, (_, grads) = step(state, (np.ones((8, 64), np.float32), np.eye(8, dtype=np.float32)), KEY)
    masks = np.asarray(grads[1]["W"]) != 0
    assert len({tuple(row) for row in masks}) == 8
    assert 0.4 < masks.mean() < 0.6


@pytest.mark.long
def test_a_run_goes_on_as_if_it_had_never_stopped():
    network = fnn.serial(CUT, fnn.dropout(0.2))
    train = lambda epochs, **start: fnn.fit(
        network, fnn.softmax_cross_entropy, fnn.adam(0.01), (X, Y), key=KEY, epochs=epochs,
        batch_size=24, mesh=BOTH, shard_params=True, **start,
    )  # fmt: skip
    whole, history = train(4)
    half, first = train(2)
    rest, second = train(4, start=Progress(half, first, half))
    assert history == second
    assert difference(whole, rest) == 0


@pytest.mark.long
def test_divergence_is_found_at_the_same_step():
    target = np.eye(10, dtype=np.float32)[Y]
    bad = X.copy()
    bad[50] *= 1e25
    stream = [(bad[i : i + 20], target[i : i + 20]) for i in range(0, 103, 20)]
    where = {"mesh": BOTH, "shard_params": True}
    found = []
    for data, batch_size, options in (
        (stream, None, {}), (stream, None, where), ((bad, target), 24, where)
    ):  # fmt: skip
        with pytest.raises(fnn.DivergedError) as caught:
            fnn.fit(
                CUT if options else MLP, fnn.mse, fnn.sgd(0.01), data, key=KEY, epochs=3,
                batch_size=batch_size, **options,
            )  # fmt: skip
        found.append(caught.value)
    assert found[0].step == found[1].step == 3
    assert str(found[0]) == str(found[1])
    assert 1 <= found[2].step <= 5
    assert found[2].leaf.startswith("gradient")


@pytest.mark.optimized
def test_memory_per_device():
    """Arguments are an eighth, and repeat gathers one copy at a time."""
    optimizer = fnn.adam(1e-3)
    block = fnn.serial(fnn.dense(128, 128), fnn.relu)

    def sizes(network, mesh, shard_params=False):
        step = fnn.make_step(network, fnn.mse, optimizer, mesh=mesh, shard_params=shard_params)
        init = lambda key: optimizer.init(network.init(key))
        state = jax.eval_shape(init, KEY)
        batch = (jax.ShapeDtypeStruct((16, 128), jnp.float32),) * 2
        if mesh is not None:
            like = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
            state = jax.tree.map(like, state, parallel.shardings(init, mesh))
            split = NamedSharding(mesh, P("data"))
            batch = jax.tree.map(lambda a: like(a, split), batch)
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        memory = compiled.memory_analysis()
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes

    arguments, _ = sizes(fnn.repeat(block, 16), None)
    cut = fnn.repeat(fully_sharded(block, "data"), 16)
    part, temporary = sizes(cut, DATA)
    copies = 16 * 128 * 128 * 4
    assert part < arguments / 8 * 1.01
    assert temporary < copies / 2


def loss_of(apply):
    def loss(params, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), y[:, None], 1).mean()

    return loss


def test_autodiff_of_a_parallel_layer_sums_over_the_devices_once():
    """Both modes, by params that are cut, whole, and whole as the devices don't divide them."""
    params, x, y = MLP.init(KEY), X[:40], Y[:40]
    plain = jax.jit(jax.value_and_grad(loss_of(lambda p, x: MLP.forward(p, x)[0])))
    expected, gradient = plain(params, x, y)
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, params)))
    for layer in (replicated(MLP, "data"), fully_sharded(MLP, "data")):
        loss = loss_of(fnn.differentiable(layer))
        specs = parallel.specs(layer.init, DATA)

        def program(params, x, y, loss=loss):
            mean = lambda p: jax.lax.pmean(loss(p, x, y), "data")
            return *jax.value_and_grad(mean)(params), jax.jvp(mean, (params,), (params,))[1]

        run = shard_mapped(program, DATA, (specs, P("data"), P("data")), (P(), specs, P()))
        assert difference(run(params, x, y), (expected, gradient, slope)) < 1e-6


def test_autodiff_of_copy_to_and_sum_over():
    """A perceptron written in plain JAX between the two."""
    network = fnn.mlp((16, 32, 10))
    layer = parallel.mlp((16, 32, 10), "model")
    copy, add = (fnn.differentiable(f("model")) for f in (copy_to, sum_over))

    def cut(params, x):
        hidden, _, out, _ = params
        h = jnp.tanh(copy((), x) @ hidden["W"].T + hidden["b"])
        return add((), h @ out["W"].T) + out["b"]

    def whole(params, x):
        hidden, _, out, _ = params
        return jnp.tanh(x @ hidden["W"].T + hidden["b"]) @ out["W"].T + out["b"]

    specs, params = parallel.specs(layer.init, BOTH), network.init(KEY)
    gradient = lambda apply: jax.grad(loss_of(apply), (0, 1))
    run = shard_mapped(gradient(cut), BOTH, (specs, P(), P()), (specs, P()))
    expected = jax.jit(gradient(whole))(params, X[:40], Y[:40])
    assert difference(run(params, X[:40], Y[:40]), expected) < 1e-6


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("replicated", replicated(DENSE, "data")),
        ("fully_sharded", fully_sharded(DENSE, "data")),
        ("sharded", sharded(lambda n: fnn.dense(16, 16 // n), "data")),
    ],
)
def test_gradients_are_refused_where_nothing_says_what_varies(name, wrapped):
    specs = parallel.specs(wrapped.init, DATA)
    gradient = fnn.value_and_grad(wrapped, fnn.mse)
    run = jax.shard_map(
        lambda p, x: gradient(p, x, wrapped.forward(p, x)[0])[1],
        mesh=DATA, in_specs=(specs, P("data")), out_specs=specs, check_vma=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^{name}: expected jax.shard_map with check_vma=True"):
        jax.eval_shape(run, wrapped.init(KEY), X[:40])


def test_a_width_that_the_devices_do_not_divide_is_named():
    for make, named in (
        (lambda: parallel.mlp((16, 31, 10), "model"), "column_dense(16, 31)"),
        (lambda: parallel.row_dense(31, 10, "model"), "row_dense(31, 10)"),
    ):
        message = re.escape(f"{named}: expected a width divisible by the 2 devices of 'model'")
        with pytest.raises(ValueError, match=message):
            parallel.specs(make().init, BOTH)


@pytest.mark.long
@pytest.mark.parametrize("wrap", [replicated, fully_sharded])
def test_every_layer_of_the_catalogue(wrap):
    """Its gradient on 8 devices with 7 examples each is that of all 56 on one."""
    for name, (plain, x) in LAYERS.items():
        if name.endswith(", training"):  # draws, and normalises, on each device by itself
            continue
        if name.startswith("parallel."):  # wants an axis of its own
            continue
        x = jax.tree.map(lambda a: np.concatenate([np.roll(a, i, 0) for i in range(8)]), x)
        params, layer = plain.init(KEY), wrap(plain, "data")
        dy = jax.tree.map(jnp.cos, plain.forward(params, x)[0])

        def gradient(params, x, dy, layer):
            return layer.backward(params, layer.forward(params, x)[1], dy)

        specs = parallel.specs(layer.init, DATA)
        ours = shard_mapped(
            lambda p, x, dy, layer=layer: gradient(p, x, dy, layer),
            DATA, (specs, P("data"), P("data")), (specs, P("data")),
        )  # fmt: skip
        got, expected = ours(params, x, dy), gradient(params, x, dy, plain)
        kept = lambda tree: [a for a in jax.tree.leaves(tree) if a.dtype.kind == "f"]
        scale = max([1.0, *(float(jnp.abs(a).max()) for a in kept(expected))])
        tolerance = 2e-2 if name == "compute_in" else 1e-5
        assert not kept(expected) or difference(kept(got), kept(expected)) < tolerance * scale, name
