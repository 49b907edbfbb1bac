"""Curvature against dense Jacobians and Hessians, and K-FAC against the natural gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, LOSSES as LOSS_CASES
from jax.flatten_util import ravel_pytree
from test_per_example import (
    PROBLEMS,
    REPEATED,
    WIDE,
    assert_close,
    largest_array,
    own_layer,
    problem,
    quick,
)

import fnn
from fnn import curvature, per_example


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def dense_parts(network, loss, params, x, y):
    """The reference: J (m, k, ...) in each leaf, and H (m, k, k)."""

    def parts(params, x, y):
        prediction, _ = network.forward(params, x)
        jacobian = jax.jacrev(lambda p: network.forward(p, x)[0])(params)
        return jacobian, jax.vmap(jax.hessian(loss.value))(prediction, y)

    return jax.tree.map(np.asarray, quick(parts, params, x, y))


def dense_ggn(jacobian, hessian):
    """G (parameters, parameters), whole."""
    m, k = hessian.shape[:2]
    rows = np.concatenate([j.reshape(m, k, -1) for j in jax.tree.leaves(jacobian)], 2)
    return np.einsum("nkp,nkl,nlq->pq", rows, hessian, rows, optimize=True) / m


def dense_kronecker(jacobian, hessian):
    """(A, S) out of the whole Jacobians: each example's block is exactly A_n (x) S_n, so that
    S_n is the bias's own block, and A_n the block's partial trace divided by tr S_n."""

    def block(j, a="", b="", out=""):
        return np.einsum(f"nk...{a},nkl,nl...{b}->n...{out}", j, hessian, j)

    def one(node):
        if not isinstance(node, dict) or node.keys() != {"W", "b"}:
            return jax.tree.map(lambda j: block(j).mean(0), node)
        whole = np.concatenate([node["W"], node["b"][..., None]], -1)
        s, a = block(node["b"], "o", "p", "op"), block(whole, "oi", "oj", "ij")
        trace = np.trace(s, axis1=-2, axis2=-1)[..., None, None]
        return curvature.Kronecker((a / trace).mean(0), s.mean(0))

    return jax.tree.map(one, jacobian, is_leaf=lambda node: isinstance(node, dict))


@pytest.mark.parametrize(("network", "loss"), PROBLEMS)
def test_every_instrument_against_dense_jacobians(network, loss):
    params, x, y = problem(network, loss, (4,))
    flat, unflatten = ravel_pytree(params)
    v = unflatten(jax.random.normal(KEY, flat.shape, flat.dtype))

    def instruments(params, x, y, v):
        return {
            "diagonal": curvature.ggn_diagonal(network, loss)(params, x, y),
            "product": curvature.gauss_newton_vector_product(network, loss)(params, x, y, v),
            "kronecker": curvature.kronecker_factors(network, loss)(params, x, y),
        }

    parts = dense_parts(network, loss, params, x, y)
    ggn = dense_ggn(*parts)
    expected = {
        "diagonal": unflatten(np.diag(ggn)),
        "product": unflatten(ggn @ ravel_pytree(v)[0]),
        "kronecker": dense_kronecker(*parts),
    }
    assert_close(quick(instruments, params, x, y, v), expected)


KNOWN = [case for case in LOSS_CASES if case.loss.root is not None]


@pytest.mark.parametrize("case", KNOWN, ids=[case.name for case in KNOWN])
def test_roots_against_the_hessian_of_the_loss(case):
    columns = case.loss.root(jnp.asarray(case.prediction), case.target)
    hessian = jax.vmap(jax.hessian(case.loss.value))(case.prediction, case.target)
    assert_close(jnp.einsum("cni,cnj->nij", columns, columns), hessian, 1e-14)


def test_ggn_diagonal_of_a_piecewise_linear_network_is_the_hessians():
    network = fnn.serial(
        fnn.mlp((5, 6, 4), fnn.leaky_relu(), fnn.relu), fnn.skip(fnn.dense(4, 4)), fnn.dense(4, 3)
    )
    params, x, y = problem(network, fnn.softmax_cross_entropy)
    flat, unflatten = ravel_pytree(params)

    def mean_loss(p):
        return fnn.objective(network, fnn.softmax_cross_entropy)(unflatten(p), x, y)

    hessian = quick(jax.hessian(mean_loss), flat)
    diagonal = curvature.ggn_diagonal(network, fnn.softmax_cross_entropy)
    assert_close(quick(diagonal, params, x, y), unflatten(jnp.diag(hessian)))


def test_hessian_vector_product_is_the_users_own_jvp_of_our_gradient():
    network, loss = REPEATED, fnn.softmax_cross_entropy
    params, x, y = problem(network, loss)
    flat, unflatten = ravel_pytree(params)
    v = jax.random.normal(KEY, flat.shape, flat.dtype)

    def product(params, v):
        def gradient(params):
            return fnn.value_and_grad(network, loss)(params, x, y)[1]

        return jax.jvp(gradient, (params,), (v,))[1]

    def mean_loss(flat):
        return fnn.objective(network, loss)(unflatten(flat), x, y)

    hessian = quick(jax.hessian(mean_loss), flat)
    assert_close(quick(product, params, unflatten(v)), unflatten(hessian @ v))


def test_every_leading_axis_is_a_batch_axis():
    params, x, y = problem(REPEATED, fnn.mse, (2, 3))
    rows = (params, x.reshape(6, 5), y.reshape(6, 3))

    def instruments(params, x, y):
        return (
            curvature.ggn_diagonal(REPEATED, fnn.mse)(params, x, y),
            curvature.kronecker_factors(REPEATED, fnn.mse)(params, x, y),
            curvature.gauss_newton_vector_product(REPEATED, fnn.mse)(params, x, y, params),
        )

    assert_close(quick(instruments, params, x, y), quick(instruments, *rows), 1e-12)


def test_a_layer_of_ones_own_takes_part_in_either_orientation():
    network = fnn.serial(fnn.dense(5, 4), fnn.repeat(own_layer, 2), own_layer, fnn.dense(4, 3))
    params, x, y = problem(network, fnn.mse)
    _, unflatten = ravel_pytree(params)
    ggn = dense_ggn(*dense_parts(network, fnn.mse, params, x, y))

    def instruments(params, x, y):
        return (
            curvature.ggn_diagonal(network, fnn.mse)(params, x, y),
            curvature.gauss_newton_vector_product(network, fnn.mse)(params, x, y, params),
            curvature.kronecker_factors(network, fnn.mse)(params, x, y)[2],
        )

    diagonal, product = unflatten(np.diag(ggn)), unflatten(ggn @ ravel_pytree(params)[0])
    found = quick(instruments, params, x, y)
    assert_close(found, (diagonal, product, diagonal[2]))


def test_a_root_of_ones_own_gives_the_empirical_fisher():
    def gradient_alone(prediction, target):
        return fnn.huber().gradient(prediction, target)[None]

    params, x, y = problem(REPEATED, fnn.huber())
    fisher = curvature.ggn_diagonal(REPEATED, fnn.huber(), root=gradient_alone)
    moment = per_example.second_moment(REPEATED, fnn.huber())
    assert_close(quick(fisher, params, x, y), quick(moment, params, x, y), 1e-12)


def natural_step(network, loss, params, x, y, rate, damping):
    """theta - rate (G + damping I)^-1 g, with G whole."""
    flat, unflatten = ravel_pytree(params)
    ggn = dense_ggn(*dense_parts(network, loss, params, x, y))
    grads = ravel_pytree(quick(jax.grad(fnn.objective(network, loss)), params, x, y))[0]
    step = np.linalg.solve(ggn + damping * np.eye(flat.size), grads)
    return unflatten(flat - rate * step)


def kfac_step(network, loss, params, x, y, rate, damping):
    optimizer = curvature.kfac(rate, damping)

    def one(params, x, y):
        factors = curvature.kronecker_factors(network, loss)(params, x, y)
        state = curvature.observe(optimizer.init(params), factors)
        return fnn.make_step(network, loss, optimizer)(state, (x, y))[0].params

    return quick(one, params, x, y)


@pytest.mark.parametrize("damping", [0.3, 1e-4])
def test_kfac_on_a_linear_model_is_the_natural_gradient(damping):
    network = fnn.dense(5, 3)
    params, x, y = problem(network, fnn.mse)
    args = (network, fnn.mse, params, x, y, 0.7, damping)
    assert_close(kfac_step(*args), natural_step(*args))
    # Softmax's curvature is the same for every example where the logits are.
    zero = jax.tree.map(jnp.zeros_like, params)
    labels = jnp.array([0, 2, 1, 1, 2, 2])
    args = (network, fnn.softmax_cross_entropy, zero, x, labels, 0.7, damping)
    assert_close(kfac_step(*args), natural_step(*args))


def test_kfac_solves_least_squares_in_one_step():
    network = fnn.dense(5, 3)
    params, x, y = problem(network, fnn.mse, (20,))
    solved = kfac_step(network, fnn.mse, params, x, y, 1.0, 1e-14)
    inputs = jnp.concatenate([x, jnp.ones((20, 1))], 1)
    best = jnp.linalg.lstsq(inputs, y)[0].T
    assert_close(solved, {"W": best[:, :-1], "b": best[:, -1]})


def test_kfac_under_repeat_is_kfac_of_the_copies():
    block = fnn.serial(fnn.dense(4, 4), fnn.tanh, fnn.layer_norm(4))
    stacked, unrolled = fnn.repeat(block, 2), fnn.serial(block, block)
    params = jax.tree.map(lambda p: p.astype("float64"), stacked.init(KEY))
    x, y = jax.random.normal(KEY, (2, 6, 4), "float64")
    copies = tuple(jax.tree.map(lambda p: p[i], params) for i in range(2))  # noqa: B023
    got = kfac_step(stacked, fnn.mse, params, x, y, 0.1, 0.01)
    expected = kfac_step(unrolled, fnn.mse, copies, x, y, 0.1, 0.01)
    assert_close(got, jax.tree.map(lambda *p: jnp.stack(p), *expected))
    assert not jnp.allclose(got[2]["gain"], params[2]["gain"])


def test_kfac_before_it_has_observed_is_gradient_descent():
    params, x, y = problem(REPEATED, fnn.mse)
    optimizer = curvature.kfac(0.2, damping=1.0)
    step = jax.jit(fnn.make_step(REPEATED, fnn.mse, optimizer))
    state, _ = step(optimizer.init(params), (x, y))
    assert state.step == 1
    _, grads = jax.jit(fnn.value_and_grad(REPEATED, fnn.mse))(params, x, y)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), 1e-14)


def test_observe_is_a_running_mean_without_the_start():
    params, x, y = problem(fnn.dense(5, 3), fnn.mse)
    factors = curvature.kronecker_factors(fnn.dense(5, 3), fnn.mse)
    first, second = factors(params, x, y), factors(params, 2 * x, y)
    state = curvature.kfac(0.1).init(params)
    for seen in (first, second):
        state = curvature.observe(state, seen, 0.9)
    mean = jax.tree.map(lambda a, b: (0.9 * a + b) / 1.9, first, second)
    a, s = state.bases.U * state.bases.a @ state.bases.U.T, state.bases.V * state.bases.s
    assert_close(curvature.Kronecker(a, s @ state.bases.V.T), mean, 1e-6)
    last = curvature.observe(state, second, 0)
    a = last.bases.U * last.bases.a @ last.bases.U.T
    assert_close(a, second.A, 1e-12)


def test_kfac_trains_in_one_scan():
    network, loss = fnn.mlp((5, 8, 3), fnn.tanh), fnn.softmax_cross_entropy
    params, x, y = problem(network, loss, (40,))
    optimizer = curvature.kfac(lambda step: 0.5 / (1 + 0.01 * step.astype("float32")), 1e-2)
    factors = curvature.kronecker_factors(network, loss)
    step = fnn.make_step(network, loss, optimizer)

    def one(state, _):
        state = curvature.observe(state, factors(state.params, x, y))
        return step(state, (x, y))

    _, losses = jax.jit(lambda s: jax.lax.scan(one, s, length=60))(optimizer.init(params))
    descent = fnn.sgd(0.5)
    plain = fnn.make_step(network, loss, descent)
    _, slow = jax.jit(lambda s: jax.lax.scan(lambda s, _: plain(s, (x, y)), s, length=60))(
        descent.init(params)
    )
    assert losses[-1] < 0.5 * slow[-1]


def test_narrow_networks_keep_their_dtype_and_their_curvature_is_float32():
    params, x, y = problem(REPEATED, fnn.softmax_cross_entropy)
    narrow, narrow_x = jax.tree.map(lambda a: a.astype("bfloat16"), (params, x))
    optimizer = curvature.kfac(0.1, damping=0.1)
    step = fnn.make_step(REPEATED, fnn.softmax_cross_entropy, optimizer)
    instruments = [
        make(REPEATED, fnn.softmax_cross_entropy)
        for make in (
            curvature.ggn_diagonal,
            curvature.kronecker_factors,
            curvature.gauss_newton_vector_product,
        )
    ]

    def run(params, x, y):
        diagonal, factors = (f(params, x, y) for f in instruments[:2])
        state, _ = step(curvature.observe(optimizer.init(params), factors), (x, y))
        return (diagonal, factors), (instruments[2](params, x, y, params), state.params)

    wide, keep = quick(run, narrow, narrow_x, y)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(keep)} == {"bfloat16"}
    reference = jax.tree.map(lambda a: a.astype("float32"), quick(run, params, x, y))
    assert_close(jax.tree.map(lambda a: a.astype("float32"), (wide, keep)), reference, 0.05)


FEW, COLUMNS_TIMES_WEIGHTS = 8, 5 * 48 * 48  # of WIDE: 5 classes


@pytest.mark.parametrize("make", [curvature.ggn_diagonal, curvature.kronecker_factors])
def test_no_array_of_batch_or_columns_times_parameters_exists(make):
    assert largest_array(make(WIDE, fnn.softmax_cross_entropy), FEW) < COLUMNS_TIMES_WEIGHTS


def test_the_reader_of_programs_sees_an_array_of_columns_times_parameters():
    def diagonal(params, x, y):
        prediction, residuals = WIDE.forward(params, x)
        columns = fnn.softmax_cross_entropy.root(prediction, y)
        pull = jax.vmap(lambda dy: WIDE.backward(params, residuals, dy)[0])
        return jax.tree.map(lambda g: (g * g).sum(0), pull(columns))

    assert largest_array(diagonal, FEW) >= COLUMNS_TIMES_WEIGHTS


def test_bad_arguments_are_refused():
    network = fnn.dense(5, 3)
    params, x, y = problem(network, fnn.mse)
    for make in (
        curvature.ggn_diagonal,
        curvature.kronecker_factors,
        curvature.gauss_newton_vector_product,
    ):
        with pytest.raises(ValueError, match="expected a loss with a Hessian root"):
            make(network, fnn.mae)
        with pytest.raises(TypeError, match=r"expected a Layer.*call it to make one"):
            make(fnn.dense, fnn.mse)
    diagonal = curvature.ggn_diagonal(network, fnn.mse, root=fnn.mse.gradient)
    with pytest.raises(ValueError, match=r"columns of shape \(c, \*\(6, 3\)\), got \(6, 3\)"):
        diagonal(params, x, y)
    with pytest.raises(TypeError):
        curvature.gauss_newton_vector_product(network, fnn.mse)(params, x, y, {"W": params["W"]})
    with pytest.raises(ValueError, match="damping above 0, got 0"):
        curvature.kfac(0.1, 0)
    with pytest.raises(ValueError, match="learning_rate above 0, got -1"):
        curvature.kfac(-1)
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got 1"):
        curvature.observe(curvature.kfac(0.1).init(params), params, 1)

    def backward(params, x, dy, reduce=fnn.total):
        rows = dy[..., None] * x[..., None, :]
        return {"W": reduce(fnn.Direct(rows, 2)), "b": reduce(fnn.Direct(dy))}, dy @ params["W"]

    direct = fnn.Layer(network.init, network.forward, backward)
    heads = fnn.fork(network, network)
    for make in (curvature.ggn_diagonal, curvature.kronecker_factors):
        with pytest.raises(TypeError, match="expected a network whose prediction is one array"):
            make(heads, fnn.mse)((params, params), x, (y, y))
    product = curvature.gauss_newton_vector_product(heads, fnn.mse)
    with pytest.raises(TypeError, match="expected a network whose prediction is one array"):
        product((params, params), x, (y, y), (params, params))
    with pytest.raises(TypeError, match="expected an Outer factor"):
        curvature.kronecker_factors(direct, fnn.mse)(params, x, y)


def test_hessian_vector_products_are_the_hessians():
    network, loss = fnn.mlp((3, 4, 2), fnn.tanh), fnn.softmax_cross_entropy
    params, x = network.init(jax.random.key(3)), jax.random.normal(jax.random.key(4), (6, 3))
    y = jnp.arange(6) % 2
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda p: fnn.objective(network, loss)(unravel(p), x, y))(flat)
    v = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
    product = curvature.hessian_vector_product(network, loss)
    got = product(params, x, y, unravel(v))
    np.testing.assert_allclose(ravel_pytree(got)[0], hessian @ v, rtol=1e-4, atol=1e-5)
    spectrum = curvature.lanczos(lambda v: product(params, x, y, v), unravel(v), flat.size + 3)
    values = np.linalg.eigvalsh(np.asarray(hessian, np.float64))
    np.testing.assert_allclose(spectrum.values[-1], values[-1], rtol=1e-4)
    np.testing.assert_allclose(spectrum.values[0], values[0], atol=1e-4)


def test_lanczos_weights_integrate_functions_of_the_matrix():
    a = np.random.default_rng(0).normal(size=(30, 30))
    a = a + a.T
    start = np.cos(np.arange(30))
    with jax.enable_x64(True):
        found = curvature.lanczos(lambda v: jnp.asarray(a) @ v, jnp.asarray(start), 12)
    values, weights = (np.asarray(each) for each in found)
    s = start / np.linalg.norm(start)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    for power in (1, 2, 5, 20):  # exact up to 2 * 12 - 1
        expected = s @ np.linalg.matrix_power(a, power) @ s
        np.testing.assert_allclose((weights * values**power).sum(), expected, rtol=1e-9)
    exact = curvature.lanczos(lambda v: 2 * v, jnp.ones(3), 2)
    np.testing.assert_allclose(exact.weights @ exact.values, 2, rtol=1e-6)


def test_lanczos_of_a_narrow_network_is_in_float32():
    start = jnp.arange(1.0, 4.0).astype(jnp.bfloat16)
    found = curvature.lanczos(lambda v: jnp.array([1, 2, 4], v.dtype) * v, start, 3)
    assert {leaf.dtype.name for leaf in found} == {"float32"}
    np.testing.assert_allclose(found.values, [1, 2, 4], rtol=0.02)


def test_steps_beyond_the_last_direction_add_no_eigenvalue():
    """Rounding is no eigenvector: neither of a start within two of three, nor of more steps than
    there are directions."""
    a = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    rotated = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (3, 3)))[0]
    a = rotated @ a @ rotated.T
    for start, known in ((rotated[:, 0] + rotated[:, 2], [1, 4]), (rotated.sum(1), [1, 2, 4])):
        found = curvature.lanczos(lambda v: a @ v, start, 12)
        assert found.values.min() > 0.999
        assert found.values.max() < 4.001
        kept = found.weights > 1e-3
        np.testing.assert_allclose(found.values[kept], known, rtol=1e-4)
        np.testing.assert_allclose(found.weights[kept], 1 / len(known), rtol=1e-4)
