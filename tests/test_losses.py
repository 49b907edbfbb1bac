"""Every loss of the registry: its gradient against autodiff, and where it stays finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES

import fnn

every_loss = pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)


@every_loss
def test_gradient_is_the_derivative_of_value(case):
    with jax.enable_x64(True):
        prediction, target = jnp.asarray(case.prediction), jnp.asarray(case.target)
        got = case.loss.gradient(prediction, target)
        expected = jax.grad(lambda p: case.loss.value(p, target).sum())(prediction)
        assert got.shape == expected.shape == prediction.shape
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < 1e-12


@every_loss
def test_finite_differences_agree(case):
    with jax.enable_x64(True):
        p, target, h = jnp.asarray(case.prediction), jnp.asarray(case.target), 1e-6
        v = jnp.cos(jnp.arange(1.0, p.size + 1)).reshape(p.shape)
        f = case.loss.value
        got = (f(p + h * v, target) - f(p - h * v, target)) / (2 * h)
        expected = (case.loss.gradient(p, target) * v).sum(-1)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


@every_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 6e-2)])
def test_one_loss_per_example_in_the_predictions_dtype(case, dtype, tolerance):
    prediction = jnp.asarray(case.prediction, dtype)
    both = jax.jit(lambda p, t: (case.loss.value(p, t), case.loss.gradient(p, t)))
    value, gradient = both(prediction, case.target)
    assert (value.shape, value.dtype) == (prediction.shape[:-1], dtype)
    assert (gradient.shape, gradient.dtype) == (prediction.shape, dtype)
    with jax.enable_x64(True):
        expected = both(jnp.asarray(prediction, jnp.float64), case.target)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (value, gradient))
    chex.assert_trees_all_close(wide, expected, rtol=tolerance, atol=tolerance)


@every_loss
def test_vmap_and_batch_axes_equal_a_loop(case):
    prediction, target = jnp.asarray(case.prediction, jnp.float32), jnp.asarray(case.target)
    rows = [
        (case.loss.value(p, t), case.loss.gradient(p, t))
        for p, t in zip(prediction, target, strict=True)
    ]
    expected = jax.tree.map(lambda *a: jnp.stack(a), *rows)

    def both(p, t):
        return case.loss.value(p, t), case.loss.gradient(p, t)

    chex.assert_trees_all_close(jax.vmap(both)(prediction, target), expected, rtol=1e-5)
    split = both(prediction.reshape(2, 3, -1), target.reshape(2, 3, *target.shape[1:]))
    whole = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), split)
    chex.assert_trees_all_close(whole, expected, rtol=1e-5)


def test_mean_squared_error_by_hand():
    p, t = jnp.array([[1.0, 4.0]]), jnp.array([[0.0, 2.0]])
    np.testing.assert_array_equal(fnn.mse.value(p, t), [(1 + 4) / 2])
    np.testing.assert_array_equal(fnn.mse.gradient(p, t), [[1.0, 2.0]])


def test_softmax_and_cross_entropy_give_a_minus_y():
    """Layer and loss apart, or as one rule: dL/dZ is A - Y; dL/dA is -Y / A."""
    z = jax.random.normal(jax.random.key(0), (5, 3))
    y = jax.nn.one_hot(jnp.array([0, 2, 1, 1, 0]), 3)
    a, residuals = fnn.softmax.forward((), z)
    da = fnn.cross_entropy.gradient(a, y)
    np.testing.assert_allclose(da, -y / a, rtol=1e-6)
    np.testing.assert_allclose(fnn.softmax.backward((), residuals, da)[1], a - y, atol=1e-6)
    np.testing.assert_allclose(fnn.softmax_cross_entropy.gradient(z, y), a - y, atol=1e-6)
    np.testing.assert_allclose(
        fnn.softmax_cross_entropy.value(z, y), fnn.cross_entropy.value(a, y), rtol=1e-5
    )


def test_labels_are_one_hot_distributions():
    z, labels = jax.random.normal(jax.random.key(0), (5, 3)), np.array([0, 2, 1, 1, 0], np.uint8)
    for loss, p in [(fnn.softmax_cross_entropy, z), (fnn.cross_entropy, jax.nn.softmax(z))]:
        for f in (loss.value, loss.gradient):
            np.testing.assert_array_equal(f(p, labels), f(p, np.eye(3, dtype=np.float32)[labels]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.uint32])
@pytest.mark.parametrize("k", [100, 256, 300])
def test_labels_in_few_bits_do_not_wrap(dtype, k):
    """In uint8 there is no 256, and a comparison with it would be one with 0."""
    labels = np.array([0, 1, min(k - 1, np.iinfo(dtype).max)], dtype)
    z = jax.random.normal(jax.random.key(0), (3, k))
    loss = fnn.softmax_cross_entropy
    np.testing.assert_array_equal(loss.value(z, labels), loss.value(z, labels.astype(np.int32)))
    np.testing.assert_array_equal(loss.gradient(z, labels).argmin(-1), labels)


def test_one_unknown_label_makes_its_own_row_nan():
    z, labels = jnp.ones((4, 3)), jnp.array([0, 3, 2, -1])
    np.testing.assert_array_equal(
        np.isnan(fnn.softmax_cross_entropy.value(z, labels)), [False, True, False, True]
    )
    rows = np.isnan(fnn.softmax_cross_entropy.gradient(z, labels))
    np.testing.assert_array_equal(rows.all(-1), [False, True, False, True])
    np.testing.assert_array_equal(rows.any(-1), rows.all(-1))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_logits_of_any_size_stay_finite(size):
    z = size * jnp.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
    for labels in (jnp.array([0, 0, 0]), jnp.array([1, 2, 2])):
        assert np.isfinite(fnn.softmax_cross_entropy.value(z, labels)).all()
        assert np.isfinite(fnn.softmax_cross_entropy.gradient(z, labels)).all()
        a, residuals = fnn.softmax.forward((), z)
        assert np.isfinite(fnn.softmax.backward((), residuals, a)[1]).all()
    for t in (jnp.zeros((3, 3)), jnp.ones((3, 3)), jnp.full((3, 3), 0.3)):
        assert np.isfinite(fnn.sigmoid_binary_cross_entropy.value(z, t)).all()
        assert np.isfinite(fnn.sigmoid_binary_cross_entropy.gradient(z, t)).all()


def test_a_hopeless_logit_costs_its_distance():
    z = jnp.array([[1e4, -1e4]])
    np.testing.assert_array_equal(fnn.softmax_cross_entropy.value(z, jnp.array([1])), [2e4])
    np.testing.assert_array_equal(
        fnn.softmax_cross_entropy.gradient(z, jnp.array([1])), [[1.0, -1.0]]
    )


def test_log_of_zero_is_not_hidden():
    a = jnp.array([[1.0, 0.0]])
    np.testing.assert_array_equal(fnn.cross_entropy.value(a, jnp.array([1])), [jnp.inf])
    np.testing.assert_array_equal(fnn.cross_entropy.value(a, jnp.array([0])), [0])
    np.testing.assert_array_equal(fnn.cross_entropy.gradient(a, jnp.array([0])), [[-1, 0]])
    np.testing.assert_array_equal(fnn.binary_cross_entropy.value(a, a), [0])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_seen(label):
    z = jnp.zeros((2, 3))
    for loss in (fnn.softmax_cross_entropy, fnn.cross_entropy):
        value = loss.value(z, jnp.array([0, label]))
        assert np.isnan(value[1])
        assert not np.isnan(value[0])


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "error", "message"),
    [
        (fnn.mse, (4, 1), jnp.zeros(4), ValueError, r"mse.*\(4, 1\).*\(4,\)"),
        (fnn.huber(), (4, 2), jnp.zeros((4, 1)), ValueError, r"huber.*\(4, 2\).*\(4, 1\)"),
        (fnn.mae, (4, 2), 0.0, ValueError, r"mae.*\(4, 2\).*\(\)"),
        (fnn.binary_cross_entropy, (4, 1), jnp.zeros(4, int), ValueError, "binary_cross_entropy"),
        (fnn.softmax_cross_entropy, (4, 3), jnp.zeros((4, 1), int), ValueError, r"labels.*\(4,\)"),
        (
            fnn.softmax_cross_entropy,
            (4, 3),
            jnp.zeros(4),
            TypeError,
            "labels to be integers.*float32",
        ),
        (fnn.cross_entropy, (), jnp.zeros(()), ValueError, "scalar"),
    ],
)
def test_nothing_is_broadcast(loss, prediction, target, error, message):
    for f in (loss.value, loss.gradient):
        with pytest.raises(error, match=message):
            f(jnp.ones(prediction), target)


def test_integer_predictions_are_refused():
    with pytest.raises(TypeError, match="mse.*int32"):
        fnn.mse.value(jnp.ones((2, 1), int), jnp.ones((2, 1)))


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_huber_refuses_delta(delta):
    with pytest.raises(ValueError, match="huber.*delta"):
        fnn.huber(delta)


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_losses_on_logits_are_finite_at_every_finite_logit(name, dtype):
    loss, dtype = getattr(fnn, name), jnp.dtype(dtype)
    largest = jnp.finfo(dtype).max
    edge = np.array([largest / 4, 1, 0, -0.0, -1, -largest / 4], np.float64)
    logits = jnp.asarray(np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2), dtype)
    target = jnp.asarray(np.random.default_rng(11).integers(0, 2, logits.shape), dtype)
    if name == "softmax_cross_entropy":
        target = target[:, 0].astype(jnp.int32)
    assert jnp.isfinite(loss.value(logits, target)).all()
    gradient = loss.gradient(logits, target)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient) <= 1).all()
