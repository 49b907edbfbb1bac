"""What `fit` refuses: at once, by name, before anything is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


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
    "batch": (lambda: fit(batch_size=31), "expected batch_size at most 30, got 31"),
    "no batch": (lambda: fit(batch_size=0), "batch_size of at least 1, got 0"),
    "no epochs": (lambda: fit(epochs=0), "epochs of at least 1, got 0"),
    "patience": (lambda: fit(patience=0, validation=(X, Y)), "patience of at least 1"),
    "patience alone": (lambda: fit(patience=3), r"expected validation=\(x, y\) with patience"),
    "validation": (lambda: fit(validation=(X, Y + 1)), r"fit: validation: expected labels from"),
    "start without validation": (
        lambda: fit(start=fnn.Progress(None, [{"loss": 1.0}], None), patience=2, validation=(X, Y)),
        "expected validation losses in start.history",
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
    "lists": (lambda: fit((X.tolist(), Y.tolist())), "batch_size for arrays, none for batches"),
    "lists in lists": (lambda: fit((nested(1000), Y)), "batch_size for arrays, none for batches"),
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
    for wrong in ([X.tolist(), Y.tolist()], (X, Y, Y, Y), X, (nested(1000), Y)):
        with pytest.raises(TypeError, match=r"fit: validation: expected \(x, y\), arrays"):
            fit(validation=wrong)
    for wrong in (X.astype(object), X.astype(str)):
        with pytest.raises(TypeError, match="fit: expected arrays of numbers, got"):
            fit((wrong, Y))
    with pytest.raises(TypeError, match="expected a key such as"):
        fit(key=0)
    with pytest.raises(TypeError, match="expected start=Progress"):
        fit(start=([], []))


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
