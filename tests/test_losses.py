"""Every loss of the registry: its gradient against autodiff, and where it stays finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES, TREE_LOSSES

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
        if case.loss.mixes:  # the gradient is then that of the sum
            got, expected = got.sum(), expected.sum()
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


@pytest.mark.sampled(6)
@every_loss
def test_vmap_and_batch_axes_equal_a_loop(case):
    if case.loss.mixes:
        pytest.skip("an example by itself has another loss")
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


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in LOSSES if case.loss.root], ids=lambda c: c.name)
def test_the_root_is_that_of_the_hessian(case):
    with jax.enable_x64(True):
        p, t = jnp.asarray(case.prediction), jnp.asarray(case.target)
        hessian = jax.vmap(jax.hessian(case.loss.value))(p, t)
        columns = case.loss.root(p, t)
        got = jnp.einsum("cni,cnj->nij", columns, columns)
        np.testing.assert_allclose(got, hessian, rtol=1e-9, atol=1e-12)


def test_focal_is_finite_and_its_gradient_bounded_where_a_class_is_certain():
    z = jnp.array([[1e4, -1e4], [60.0, 0.0]])
    for gamma in (0.0, 0.5, 2.0):
        for label in (0, 1):
            for f in (fnn.focal(gamma).value, fnn.focal(gamma).gradient):
                assert jnp.isfinite(f(z, jnp.full(2, label))).all()
    near = fnn.focal(0.0).gradient(z, jnp.array([0, 1]))
    np.testing.assert_allclose(near, fnn.softmax_cross_entropy.gradient(z, jnp.array([0, 1])))


@pytest.mark.parametrize("loss", [fnn.cosine, fnn.info_nce()])
def test_a_vector_of_zeros_has_no_direction_and_no_gradient(loss):
    p, t = jnp.array([[0.0, 0.0], [3e30, 4e30]]), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    assert jnp.isfinite(loss.value(p, t)).all()
    np.testing.assert_array_equal(loss.gradient(p, t)[0], 0)
    assert jnp.isfinite(loss.gradient(p, t)).all()


def test_a_q_quantile_is_found():
    t = jnp.linspace(0.0, 1.0, 101)[:, None]
    at = jnp.linspace(0.0, 1.0, 101)
    costs = [fnn.quantile(0.3).value(jnp.full_like(t, p), t).mean() for p in at]
    np.testing.assert_allclose(at[int(np.argmin(costs))], 0.3, atol=0.011)
    np.testing.assert_allclose(
        fnn.quantile(0.3).gradient(jnp.zeros((1, 1)), jnp.zeros((1, 1))), 0.2, rtol=1e-6
    )


# Heads.


@pytest.mark.parametrize("case", TREE_LOSSES, ids=lambda case: case.name)
def test_the_gradient_of_a_tree_is_the_derivative_of_value(case):
    fnn.verify.check_loss(*case[1:]).raise_for_verdict()


_P = {"class": jnp.eye(3)[:, :2], "value": jnp.ones((3, 1))}
_T = {"class": jnp.array([0, 1, 1]), "value": jnp.zeros((3, 1)), "seen": jnp.array([1, 0, 1])}
_EACH = {"class": fnn.softmax_cross_entropy, "value": fnn.huber()}


def test_heads_sum_a_loss_per_part_with_its_weight():
    for weights in (None, {"class": 0.5, "value": 3.0}):
        loss = fnn.heads(_EACH, weights)
        w = weights or dict.fromkeys(_EACH, 1.0)
        expected = sum(w[name] * _EACH[name].value(_P[name], _T[name]) for name in _EACH)
        np.testing.assert_allclose(loss.value(_P, _T), expected, rtol=1e-6)
        gradient = loss.gradient(_P, _T)
        assert jax.tree.structure(gradient) == jax.tree.structure(_P)
        for name in _EACH:
            one = w[name] * _EACH[name].gradient(_P[name], _T[name])
            np.testing.assert_allclose(gradient[name], one, rtol=1e-6)
    assert fnn.heads((fnn.mse, fnn.info_nce())).mixes
    assert not fnn.heads((fnn.mse, fnn.mae)).mixes
    with pytest.raises(TypeError, match="heads: 1: expected a Loss"):
        fnn.heads((fnn.mse, fnn.huber))


def test_a_missing_label_counts_for_nothing():
    """Here -1, which makes the loss of its own head NaN, and a value that is NaN."""
    target = _T | {"class": jnp.array([0, -1, 1]), "value": jnp.array([[0.0], [0.0], [jnp.nan]])}
    weights = lambda t: {"class": t["seen"], "value": ~jnp.isnan(t["value"][:, 0])}
    loss = fnn.heads(_EACH, weights)
    value, gradient = loss.value(_P, target), loss.gradient(_P, target)
    both = fnn.heads(_EACH).value(_P, _T)
    one = fnn.softmax_cross_entropy.value(_P["class"], _T["class"])
    np.testing.assert_allclose(value, [both[0], 0.5, one[2]], rtol=1e-6)
    np.testing.assert_array_equal(gradient["class"][1], 0)
    np.testing.assert_array_equal(gradient["value"][2], 0)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, float("nan")])
def test_quantile_refuses_q(q):
    with pytest.raises(ValueError, match="quantile.*q"):
        fnn.quantile(q)


def test_shapes_of_the_newer_losses_are_refused_by_name():
    with pytest.raises(ValueError, match=r"gaussian_nll: expected \(..., 2k\).*\(4, 3\)"):
        fnn.gaussian_nll.value(jnp.ones((4, 3)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match=r"gaussian_nll.*\(4, 1\).*\(4, 2\)"):
        fnn.gaussian_nll.gradient(jnp.ones((4, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="info_nce: expected"):
        fnn.info_nce().value(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="cosine"):
        fnn.cosine.value(jnp.ones((4, 3)), jnp.ones((4, 1)))


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_huber_refuses_delta(delta):
    with pytest.raises(ValueError, match="huber.*delta"):
        fnn.huber(delta)


@pytest.mark.sampled(6)
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
