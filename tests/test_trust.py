"""Training that notices, and calls that are refused: at once, by name, before anything is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import fitting
from fnn.training.fitting import DivergedError, Progress, epochs_since_best

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# A loss, a gradient or a state that stops being finite.


def planted(where, step):
    """A network and an optimizer with one fault, in `where`, in the update number `step`, from 1.

    The layer counts updates up to -1 in a parameter of its own, by a gradient of -1 and rate 1.
    """

    def fault(params, here, value):
        return jnp.where((params["count"] >= -1) & (where == here), value, 0)

    def forward(params, x):
        return x * params["w"] + fault(params, "loss", jnp.nan), x

    def backward(params, x, dy, reduce=fnn.total):
        dw = (x * dy).sum() + fault(params, "gradient", jnp.inf)
        return {"a": jnp.zeros(()), "count": -jnp.ones(()), "w": dw}, dy

    def init(key):
        return {"a": jnp.zeros(()), "count": jnp.float32(-step), "w": jnp.ones(())}

    rule = fnn.sgd(1.0)

    def update(state, grads):
        params = rule.update(state, grads).params
        params["a"] += fault(state.params, "updated", jnp.nan)
        return state._replace(params=params, step=state.step + 1)

    return fnn.Layer(init, forward, backward), fnn.Optimizer(rule.init, update)


SMALL = (np.ones((30, 1), np.float32), np.ones((30, 1), np.float32))


@pytest.mark.parametrize(
    "step", [1, 5, *(pytest.param(step, marks=pytest.mark.long) for step in (2, 6, 13, 20))]
)
@pytest.mark.parametrize(
    ("where", "leaf"),
    [("loss", "gradient w"), ("gradient", "gradient w"), ("updated", "updated params.a")],
)
def test_the_step_and_the_leaf_are_found(where, leaf, step):
    """5 steps per epoch, the last one smaller: the fault is named where it was planted."""
    network, optimizer = planted(where, step)
    seen = []
    with pytest.raises(DivergedError, match=f"the {leaf}") as caught:
        fit(SMALL, network, fnn.mse, optimizer, on_epoch=lambda *args: seen.append(args))
    error = caught.value
    whole, within = divmod(step - 1, 5)
    assert (error.epoch, error.step) == (whole + 1, within + 1)
    assert error.leaf == leaf
    assert np.isnan(error.loss) == (where == "loss")
    assert len(error.history) == len(seen) == whole
    assert int(error.state.step) == 5 * whole
    assert fitting.all_finite((error.state, error.history))
    assert f"epoch {whole + 1}, step {within + 1}" in str(error)


def test_a_rate_that_is_too_high_ends_with_the_last_finite_state():
    data = (X * 10, X[:, :1] * 100)
    network = fnn.mlp((3, 1))
    with pytest.raises(DivergedError) as caught:
        fit(data, network, fnn.mse, fnn.sgd(0.02), epochs=100)
    error = caught.value
    assert error.history
    again, _ = fit(data, network, fnn.mse, fnn.sgd(0.02), epochs=len(error.history))
    assert bits(error.state) == bits(again)


def test_a_whole_run_shows_its_divergence_in_the_losses():
    train = fnn.make_train(fnn.mlp((3, 1)), fnn.mse, fnn.sgd(0.02), 7, 100)
    params = fnn.mlp((3, 1)).init(KEY)
    state, losses = jax.jit(train)(params, (X * 10, X[:, :1] * 100), KEY)
    assert not np.isfinite(losses[-1])
    assert fitting.first_not_finite(state) == "params.0.W"


def test_what_is_not_finite_is_found_in_any_tree():
    tree = {"a": jnp.arange(3), "b": (jax.random.key(0), jnp.ones(2)), "c": np.float16(1)}
    assert fitting.all_finite(tree)
    assert fitting.first_not_finite(tree) is None
    for bad in (np.nan, np.inf, -np.inf):
        tree["b"] = (jnp.array([1, bad], jnp.bfloat16), jnp.array(bad))
        assert not fitting.all_finite(tree)
        assert fitting.first_not_finite(tree) == "b.0"
    assert fitting.all_finite(())


def test_a_fault_that_is_not_met_again_is_step_0():
    network, optimizer = planted("loss", 100)
    state = optimizer.init(network.init(KEY))
    step, loss, leaf = fitting.first_fault(
        fitting.Training.of("fit", network, fnn.mse, optimizer), state, [SMALL] * 3
    )
    assert (step, leaf, np.isnan(loss)) == (0, "loss", True)
    assert "in epoch 7: the loss" in str(DivergedError(7, step, loss, leaf, state, []))


# Early stopping and going on.


def test_patience_keeps_the_best_state():
    data, validation = (X[:20], Y[:20]), (X[20:], 1 - Y[20:])  # what helps there, harms here
    seen = {}
    state, history = fit(
        data,
        optimizer=fnn.adam(0.1),
        epochs=60,
        validation=validation,
        patience=3,
        on_epoch=lambda number, state, record: seen.update({number: state}),
    )
    losses = [record["validation_loss"] for record in history]
    best = int(np.argmin(losses)) + 1
    assert len(history) == best + 3 < 60
    assert bits(state) == bits(seen[best]) != bits(seen[len(history)])


def test_epochs_since_best():
    def since(*losses):
        return epochs_since_best([{"validation_loss": value} for value in losses])

    assert [since(), since(1.0), since(2.0, 1.0), since(1.0, 2.0, 3.0)] == [0, 0, 0, 2]
    assert since(1.0, 1.0, 1.0) == 2  # as low is not lower
    assert since(np.nan, 2.0, np.nan) == 1
    assert since(np.nan, np.nan) == 1


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_going_on_is_bit_for_bit_never_having_stopped(stop, patience):
    settings = {"optimizer": fnn.adam(0.05), "validation": (X, Y), "patience": patience}
    kept = {}

    def keep(number, state, record):
        kept[number] = state

    whole = fit(epochs=9, **settings)
    _, history = fit(epochs=stop, **settings, on_epoch=keep)
    best = kept[1 + int(np.argmin([record["validation_loss"] for record in history]))]
    start = Progress(kept[stop], history, best)
    state, on = fit(epochs=9, **settings, start=start)
    assert on == whole[1]
    assert bits(state) == bits(whole[0])
    assert len(history) == stop  # the caller's own list is left as it was
    assert bits(fit(epochs=stop, **settings, start=start)[0]) == bits(
        kept[stop] if patience is None else best
    )


# Calls that are refused.


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


HALF = X.astype(np.float16)


def nested(depth):
    tree = [1.0]
    for _ in range(depth):
        tree = [tree]
    return tree


REFUSED = {
    "labels above": (
        lambda: fit((X, changed(Y, 4, 2))),
        r"expected labels from 0 to 1, y\[4\] is 2",
    ),
    "labels below": (lambda: fit((X, changed(Y, 9, -1))), r"labels from 0 to 1, y\[9\] is -1"),
    "nan in x": (lambda: fit((changed(X, (3, 1), np.nan), Y)), r"x\[3, 1\] is nan"),
    "infinity in x": (lambda: fit((changed(X, (0, 2), -np.inf), Y)), r"x\[0, 2\] is -inf"),
    "nan in y": (
        lambda: fit((X, changed(X[:, :2], (5, 0), np.nan)), loss=fnn.mse),
        r"y\[5, 0\] is nan",
    ),
    "counts": (lambda: fit((X, Y[:-1])), "x has 30 examples, but y has 29"),
    "none": (lambda: fit((X[:0], Y[:0])), "at least one example"),
    "one axis": (lambda: fit((X[:, 0], Y)), r"expected x \(n, d_in\)"),
    "features": (lambda: fit((X[:, :2], Y)), r"expected x of shape \(..., 3\), got \(30, 2\)"),
    "target (n,)": (
        lambda: fit((X, X[:, 0]), fnn.mlp((3, 1)), fnn.mse),
        r"expected a target of the prediction's shape \(30, 1\), got \(30,\)",
    ),
    "labels (n, 1)": (lambda: fit((X, Y[:, None])), r"expected integer labels of shape \(30,\)"),
    "batch": (lambda: fit(batch_size=31), "batch_size 31 is larger than the data: 30"),
    "no batch": (lambda: fit(batch_size=0), "batch_size of at least 1, got 0"),
    "no epochs": (lambda: fit(epochs=0), "epochs of at least 1, got 0"),
    "patience": (lambda: fit(patience=0, validation=(X, Y)), "patience of at least 1"),
    "patience alone": (lambda: fit(patience=3), r"expected validation=\(x, y\) for patience"),
    "validation": (lambda: fit(validation=(X, Y + 1)), r"fit: validation: expected labels from"),
    "start without validation": (
        lambda: fit(start=Progress(None, [{"loss": 1.0}], None), patience=2, validation=(X, Y)),
        "expected a start with validation losses",
    ),
    "wrapped labels": (
        lambda: fit((X, Y.astype(np.int64) + 2**32)),
        r"fit: expected numbers within int32, y\[0\] is 4294967",
    ),
    "wrapped labels in validation": (
        lambda: fit(validation=(X, changed(Y.astype(np.int64), 3, -(2**40)))),
        r"fit: validation: expected numbers within int32, y\[3\] is -1099511627776",
    ),
    "wrapped labels in a stream": (
        lambda: fit([(X, Y.astype(np.uint64) + 2**32)], batch_size=None),
        r"fit: expected numbers within uint32, y\[0\]",
    ),
    "a label in a stream": (
        lambda: fit([(X, Y), (X, Y + 5)], batch_size=None),
        r"fit: batch 2: expected labels from 0 to 1, y\[0\] is ",
    ),
    "nan in a stream": (
        lambda: fit([(X, Y), (changed(X, (2, 1), np.nan), Y)], batch_size=None),
        r"fit: batch 2: expected finite numbers, x\[2, 1\] is nan",
    ),
    "an empty batch": (
        lambda: fit([(X, Y), (X[:0], Y[:0])], batch_size=None),
        "expected at least one example in each batch",
    ),
    "targets above 1": (
        lambda: fit((X, np.full((30, 2), 7, np.float32)), loss=fnn.sigmoid_binary_cross_entropy),
        r"fit: expected targets from 0 to 1, y\[0, 0\] is 7",
    ),
    "targets above 1 in a stream": (
        lambda: fit(
            [(X, np.full((30, 2), 7, np.float32))],
            loss=fnn.sigmoid_binary_cross_entropy,
            batch_size=None,
        ),
        r"fit: expected targets from 0 to 1, y\[0, 0\] is 7",
    ),
    "lists": (lambda: fit((X.tolist(), Y.tolist())), r"with arrays \(x, y\) alone"),
    "lists in lists": (lambda: fit((nested(1000), Y)), r"with arrays \(x, y\) alone"),
    "params of another": (
        lambda: NETWORK.forward(fnn.mlp((3, 5, 2)).init(KEY), X),
        r"dense\(3, 8\): expected params of shapes",
    ),
    "params of another depth": (
        lambda: NETWORK.forward(fnn.mlp((3, 2)).init(KEY), X),
        "expected params for 4 layers, got 2",
    ),
    "width 0": (lambda: fnn.mlp((3, 0, 2)), "whole numbers of at least 1"),
    "width -1": (lambda: fnn.dense(3, -1), "whole numbers of at least 1"),
    "width 2.5": (lambda: fnn.dense(3, 2.5), "whole numbers of at least 1"),
    "width True": (lambda: fnn.dense(True, 3), "whole numbers of at least 1"),
    "width of an axis": (lambda: fnn.dense(jnp.ones(1), 3), "whole numbers of at least 1"),
    "width as array": (lambda: fnn.dense(np.ones(2), 3), "whole numbers of at least 1"),
    "one size": (lambda: fnn.mlp((3,)), "at least an input and an output size"),
    "depth 0": (lambda: fnn.repeat(fnn.tanh, 0), "n of at least 1, got 0"),
    "huber": (lambda: fnn.huber(np.nan), "delta above 0, got nan"),
    "norm": (lambda: fnn.clip_by_global_norm(fnn.sgd(1), np.nan), "max_norm above 0, got nan"),
    "l2": (lambda: fnn.add_l2(fnn.sgd(1), np.nan), "alpha of at least 0, got nan"),
    "layer_norm": (lambda: fnn.layer_norm(3, eps=np.nan), "eps above 0, got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calls_are_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_dtypes_are_a_type_error():
    with pytest.raises(TypeError, match=r"dense\(3, 8\): x is float16, but params\['W'\]"):
        fit((HALF, Y))
    for wrong in ([X.tolist(), Y.tolist()], (X, Y, Y), X, (nested(1000), Y)):
        with pytest.raises(TypeError, match=r"fit: validation: expected \(x, y\), arrays"):
            fit(validation=wrong)
    for wrong in (X.astype(object), X.astype(str)):
        with pytest.raises(TypeError, match="fit: expected arrays of numbers, got"):
            fit((wrong, Y))
    with pytest.raises(TypeError, match="expected a key such as"):
        fit(key=0)
    with pytest.raises(TypeError, match="expected start=Progress"):
        fit(start=([], []))
    with pytest.raises(TypeError, match="expected a Layer, got"):
        fnn.serial(fnn.leaky_relu)
    with pytest.raises(TypeError, match="expected floating-point parameters"):
        fnn.sgd(0.1).init({"w": jnp.arange(3)})


# Numbers at the ends of their ranges.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", ["largest", "smallest"])
def test_extreme_inputs_train_or_are_reported(dtype, size):
    """Inputs as large or small as the dtype holds: training ends finite or says it diverged."""
    dtype = jnp.dtype(dtype)
    scale = {"largest": jnp.finfo(dtype).max, "smallest": jnp.finfo(dtype).tiny}[size]
    x = jnp.asarray(np.sign(X), dtype) * jnp.asarray(scale, dtype)
    plain = fnn.mlp((3, 8, 2), activation=fnn.tanh)

    def init(key):
        return jax.tree.map(lambda p: p.astype(dtype), plain.init(key))

    network = plain._replace(init=init)
    try:
        state, history = fit((x, Y), network, optimizer=fnn.adam(0.01), epochs=3)
    except DivergedError as error:
        state, history = error.state, error.history
    assert fitting.all_finite((state, history))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_losses_on_logits_are_finite_at_every_finite_logit(name, dtype):
    loss, dtype = getattr(fnn, name), jnp.dtype(dtype)
    largest = jnp.finfo(dtype).max
    edge = np.array([largest / 4, 1, 0, -0.0, -1, -largest / 4], np.float64)
    logits = jnp.asarray(np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2), dtype)
    target = jnp.asarray(RNG.integers(0, 2, logits.shape), dtype)
    if name == "softmax_cross_entropy":
        target = target[:, 0].astype(jnp.int32)
    assert fitting.all_finite(loss.value(logits, target))
    gradient = loss.gradient(logits, target)
    assert fitting.all_finite(gradient)
    assert (jnp.abs(gradient) <= 1).all()


def test_a_variance_that_overflows_is_not_an_output_of_0():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    batch_norm = fnn.at(fnn.batch_norm(3), KEY)
    params = batch_norm.init(KEY)
    assert (batch_norm.forward(params, x * 1e15)[0] != 0).any()
    assert jnp.isnan(batch_norm.forward(params, x * 1e20)[0]).all()
    layer, scale = fnn.layer_norm(3), 2.0**66  # 7e19
    (y, small), (same, large) = (layer.forward(params, x * s) for s in (2.0**20, scale))
    np.testing.assert_allclose(same, y, rtol=1e-5)
    dx, expected = (
        layer.backward(params, residuals, x)[1] * s
        for residuals, s in ((large, scale), (small, 2.0**20))
    )
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)
    derivative = jax.jvp(lambda x: layer.forward(params, x)[0], (x,), (x,))[1]
    assert fitting.all_finite(derivative)


# Memory.


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_chunks_change_no_prediction(n, monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK", 4)
    network = fnn.fork(NETWORK, fnn.tanh)
    params = network.init(KEY)
    x = jnp.asarray(X[:n])
    expected, _ = network.forward(params, x)
    got = jax.jit(lambda p, x: fitting.predicted(network, p, x))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_validation_takes_the_memory_of_a_chunk():
    """Of a million examples the activations at once would be 4 GB."""
    network = fnn.mlp((4, 1024, 1))
    params = jax.eval_shape(network.init, KEY)
    x = jax.ShapeDtypeStruct((2**20, 4), jnp.float32)
    program = jax.jit(lambda p, x: fitting.predicted(network, p, x)).lower(params, x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**28


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_targets_of_a_stream_are_looked_at_where_they_are(of):
    """On the device they cost no wait: a batch that is wrong is named when its epoch is over."""
    good = (of(np.ones((4, 3), np.float32)), of(np.ones((4, 1), np.float32)))
    wrong = (good[0], of(np.array([[0], [1], [7], [1]], np.float32)))
    with pytest.raises(ValueError, match=r"fit.*: expected targets from 0 to 1, y\[2, 0\] is 7"):
        fnn.fit(
            fnn.dense(3, 1),
            fnn.sigmoid_binary_cross_entropy,
            fnn.sgd(0.1),
            [good, good, wrong, good],
            key=jax.random.key(0),
            epochs=2,
        )
