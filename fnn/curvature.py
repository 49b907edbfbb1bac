"""The generalised Gauss-Newton matrix of a network, from its backward pass.

    G = (1/m) sum_n J_n^T H_n J_n,    H_n = sum_c s_nc s_nc^T

J_n (k, parameters) is the Jacobian of prediction n and H_n (k, k) the Hessian of its loss by the
prediction. G is the Hessian of the mean loss without the network's second derivatives. It is
positive semidefinite, equal to the Hessian if the network is linear, and the Fisher matrix for
`softmax_cross_entropy` on labels (Martens 2020). The columns s_nc are the loss's Hessian root. One
backward pass per column, all columns at once by `jax.vmap`, gives J_n^T s_nc: for a dense layer
delta_nc [a_n; 1]^T.

    ggn_diagonal                  diag G = (1/m) sum_n sum_c (J_n^T s_nc)^2     Dangel et al. 2020
    kronecker_factors             A = (1/m) sum_n [a_n; 1] [a_n; 1]^T
                                  S = (1/m) sum_n sum_c delta_nc delta_nc^T    Botev et al. 2017
    kfac                          gradient descent in the metric A (x) S       Martens & Grosse 2015
    gauss_newton_vector_product   G v                                         Schraudolph 2002

A root is root(prediction, target) -> (c, ..., k), columns first, with H = sum_c s_c s_c^T for each
example. `mse`, `softmax_cross_entropy`, `smoothed_cross_entropy`, `sigmoid_binary_cross_entropy`
and `poisson_nll` have one; for another loss pass `root=`. With root=lambda p, t:
loss.gradient(p, t)[None], G is the empirical Fisher matrix; with gradients for targets drawn from
the model, it is a Monte Carlo estimate of the Fisher matrix.

By default each entry of the loss's value is an example; `example_axes` changes that, as in
`fnn.per_example`. All raise ValueError for a loss without a root.

The Hessian itself, by differentiating the hand-written gradient:

    hessian_vector_product        H v                                         Pearlmutter 1994
    lanczos                       eigenvalues of a matrix given by its products with vectors
"""

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fnn import numbers
from fnn.backprop import example_shape, per_example_backward, value_and_grad
from fnn.base import (
    Array,
    Layer,
    Loss,
    Optimizer,
    Params,
    Tree,
    at_least_float32,
    check_array,
    check_layer,
    check_unmixed,
)
from fnn.losses import Root
from fnn.optimizers import Rate, check_gradients, check_state, sgd
from fnn.reductions import Direct, Factor, Masked, Outer, Rows


def ggn_diagonal(
    network: Layer, loss: Loss, *, root: Root | None = None, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Params]:
    """f(params, x, y) -> the diagonal of G, exactly: a tree like params.

    It equals the diagonal of the Hessian of the mean loss if every layer is piecewise linear, such
    as `dense` and `relu`, except at the kinks.

    >>> import fnn
    >>> network, params = fnn.dense(2, 1), {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> ggn_diagonal(network, fnn.mse)(params, x, y)["W"].round(1)
    Array([[1., 4.]], dtype=float32)
    """
    return _mean(network, loss, root, _diagonal, example_axes)


class Kronecker(NamedTuple):
    """A dense layer's block of G, as A (x) S: A (d_in + 1, d_in + 1), whose last row and column
    belong to the bias, and S (d_out, d_out). `repeat` adds a leading axis for the copies.

    >>> Kronecker(A=jnp.eye(3), S=jnp.eye(2)).S.shape
    (2, 2)
    """

    A: Array
    S: Array


def kronecker_factors(
    network: Layer, loss: Loss, *, root: Root | None = None, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Any]:
    """f(params, x, y) -> a tree like params with a `Kronecker` for each dense layer's dict, and
    the diagonal of G for every other parameter.

    A dense layer is one whose params are {"W": (d_out, d_in), "b": (d_out,)} and whose W has
    `Outer` gradients. A (x) S is its block of G exactly if [a;1] [a;1]^T and the curvature by the
    layer's output are uncorrelated: in a linear network with `mse`, or for one example.

    Raises TypeError for a layer with such params whose W has another factor.

    >>> import fnn
    >>> network, params = fnn.dense(2, 1), {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> kronecker_factors(network, fnn.mse)(params, x, y).S.round(3)
    Array([[2.]], dtype=float32)
    """
    mean = _mean(network, loss, root, _block, example_axes)

    def one(node: Any, blocks: Any) -> Any:
        if not _is_dense(node):
            return blocks.diagonal
        if blocks["W"].kronecker is None:
            raise TypeError("kronecker_factors: expected an Outer factor of a dense layer's W")
        return blocks["W"].kronecker

    return lambda params, x, y: jax.tree.map(one, params, mean(params, x, y), is_leaf=_is_dense)


def gauss_newton_vector_product(
    network: Layer, loss: Loss, *, root: Root | None = None
) -> Callable[[Params, Tree, Tree, Params], Params]:
    """f(params, x, y, v) -> G v, where v and G v are trees like params, at the cost of about two
    gradients: u_n = H_n J_n v, then (1/m) sum_n J_n^T u_n.

    J_n v is the transpose of backward, which is linear in dy: `jax.linear_transpose` derives it
    from the hand-written rule, so no second rule for forward mode is needed.

    Raises TypeError if v differs from params in structure, shape or dtype.

    >>> import fnn
    >>> network, params = fnn.dense(2, 1), {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> v = {"W": jnp.ones((1, 2)), "b": jnp.zeros(1)}
    >>> Gv = gauss_newton_vector_product(network, fnn.mse)(params, x, y, v)
    >>> bool(jnp.allclose(Gv["W"], jnp.array([[3.0, 6.0]])))
    True
    """
    root = _root_of(loss, root)
    check_layer("network", network)

    def f(params: Params, x: Tree, y: Tree, v: Params) -> Params:
        prediction, residuals = network.forward(params, x)
        columns, losses = _columns(loss, root, prediction, y)

        def pull(dy: Array) -> Params:
            dparams, _ = network.backward(params, residuals, dy)
            return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(dparams))

        (jv,) = jax.linear_transpose(pull, prediction)(v)
        return pull((columns * (columns * jv).sum(-1, keepdims=True)).sum(0) / losses.size)

    return f


def hessian_vector_product(
    network: Layer, loss: Loss
) -> Callable[[Params, Tree, Tree, Params], Params]:
    """f(params, x, y, v) -> H v, with H the Hessian of the mean loss, and v and H v trees like
    params: the derivative along v of the hand-written gradient, at the cost of about two
    gradients. Pearlmutter 1994.

    Raises TypeError if v differs from params in structure, shape or dtype.

    >>> import fnn
    >>> network, params = fnn.dense(2, 1), {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> v = {"W": jnp.ones((1, 2)), "b": jnp.zeros(1)}
    >>> hessian_vector_product(network, fnn.mse)(params, x, y, v)["W"]
    Array([[3., 6.]], dtype=float32)
    """
    gradient = value_and_grad(network, loss)

    def f(params: Params, x: Tree, y: Tree, v: Params) -> Params:
        return jax.jvp(lambda params: gradient(params, x, y)[1], (params,), (v,))[1]

    return f


class Spectrum(NamedTuple):
    """`values` (k,), estimates of eigenvalues, ascending, and `weights` (k,), which sum to 1.

    >>> Spectrum(values=jnp.ones(1), weights=jnp.ones(1)).weights
    Array([1.], dtype=float32)
    """

    values: Array
    weights: Array


def lanczos(product: Callable[[Params], Params], start: Params, steps: int) -> Spectrum:
    """The spectrum of a symmetric matrix A, from `steps` products A v. Lanczos 1950.

    product(v) -> A v, for v a tree like params; start is the first v, such as standard normal
    noise. The extreme values approach A's extreme eigenvalues. For any f,
    sum_i weights_i f(values_i) is about s^T f(A) s with s = start / ||start||; averaged over random
    starts this estimates the spectral density (Ghorbani et al. 2019). Each step orthogonalises
    against all earlier ones, so the memory is `steps` times that of start.

    Raises ValueError for steps below 1.

    >>> product = lambda v: jnp.array([1.0, 2.0, 4.0]) * v
    >>> lanczos(product, jnp.ones(3), 3).values.round(3)
    Array([1., 2., 4.], dtype=float32)
    """
    steps = numbers.count("lanczos", steps=steps)
    narrow, unravel = ravel_pytree(start)
    flat = narrow.astype(at_least_float32(narrow.dtype))

    def step(carry: Any, i: Array) -> tuple[Any, Any]:
        basis, q, largest = carry
        basis = basis.at[i].set(q)
        w = ravel_pytree(product(unravel(q.astype(narrow.dtype))))[0].astype(q.dtype)
        alpha, largest = w @ q, jnp.maximum(largest, jnp.linalg.norm(w))
        for _ in range(2):  # twice: one pass leaves its own rounding error
            w = w - (basis @ w) @ basis
        beta = jnp.linalg.norm(w)
        # Where no direction is left, w is rounding, which would be an eigenvector of its own.
        beta = jnp.where(beta > 64 * jnp.finfo(w.dtype).eps * largest, beta, 0)
        return (basis, w / jnp.where(beta > 0, beta, jnp.inf), largest), (alpha, beta, q.any())

    first = jnp.zeros((steps, flat.size), flat.dtype), flat / jnp.linalg.norm(flat)
    carry = *first, jnp.zeros((), flat.dtype)
    _, (alpha, beta, is_direction) = jax.lax.scan(step, carry, jnp.arange(steps))
    alpha = jnp.where(is_direction, alpha, alpha[0])  # within the spectrum, with a weight of 0
    values, vectors = jnp.linalg.eigh(
        jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    )
    return Spectrum(values, jnp.square(vectors[0]))


class KFACState(NamedTuple):
    """params and step as in every optimizer's state. factors: the weighted sum of the observed
    `kronecker_factors`; weight: the sum of their weights; bases: eigenvectors and eigenvalues of
    the weighted mean.

    >>> kfac(0.1).init({"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}).weight
    Array(0., dtype=float32)
    """

    params: Params
    step: Array
    factors: Tree
    weight: Array
    bases: Any


_Basis = namedtuple("_Basis", "a U s V")
"""a, s: the eigenvalues of A and S; U, V: their eigenvectors, as columns."""


def kfac(learning_rate: Rate, damping: float | Array = 1e-3) -> Optimizer:
    """Gradient descent in the metric of the Kronecker factors. Martens & Grosse 2015.

    theta <- theta - eta (A (x) S + damping I)^-1 g. For a dense layer, with the eigenvectors
    U of A and V of S, their eigenvalues a and s, and g = [dW | db],

        direction = V (V^T g U / (s a^T + damping)) U^T

    so the damping is added to the whole block, not split between its factors. For every other
    parameter the direction is g / (diagonal of G + damping).

    It is an `Optimizer` like any other, for `fnn.make_step`, `fnn.fit` and so on. `observe` updates
    its curvature; call it as often as its cost allows, which is one backward pass over k columns
    and two eigendecompositions per layer:

        factors = kronecker_factors(network, loss)
        step = fnn.make_step(network, loss, kfac(0.3, damping=1e-2))
        state = observe(state, factors(state.params, x, y))
        state, value = step(state, (x, y))

    Before the first `observe`, A (x) S is the identity.

    Raises ValueError for a learning_rate or a damping that is not above 0.

    >>> optimizer = kfac(1.0, damping=1.0)
    >>> state = optimizer.init({"W": jnp.zeros((1, 1)), "b": jnp.zeros(1)})
    >>> state = optimizer.update(state, {"W": jnp.ones((1, 1)), "b": jnp.ones(1)})
    >>> state.params["b"]  # with A (x) S = I, half of gradient descent
    Array([-0.5], dtype=float32)
    """
    damping = numbers.positive("kfac", damping=damping)
    descent = sgd(learning_rate)

    def init(params: Params) -> KFACState:
        params, step = descent.init(params)
        identity = jax.tree.map(_identity, params, is_leaf=_is_dense)
        nothing = jax.tree.map(jnp.zeros_like, identity)
        return KFACState(params, step, nothing, jnp.zeros((), jnp.float32), _bases(identity))

    def update(state: KFACState, grads: Params) -> KFACState:
        check_state(state, KFACState)
        check_gradients(state.params, grads)

        def direction(node: Any, basis: Any, g: Any) -> Any:
            if not _is_dense(node):
                return g.astype(basis.dtype) / (basis + _as(damping, basis))
            g = jnp.concatenate([g["W"], g["b"][..., None]], -1).astype(basis.U.dtype)
            curvature = basis.s[..., :, None] * basis.a[..., None, :]
            g = basis.V.mT @ g @ basis.U / (curvature + _as(damping, curvature))
            g = basis.V @ g @ basis.U.mT
            return {"W": g[..., :-1], "b": g[..., -1]}

        directions = jax.tree.map(direction, state.params, state.bases, grads, is_leaf=_is_dense)
        moved = descent.update(descent.init(state.params)._replace(step=state.step), directions)
        return state._replace(params=moved.params, step=moved.step)

    return Optimizer(init, update)


def observe(state: KFACState, factors: Tree, decay: float | Array = 0.95) -> KFACState:
    """The state with `kronecker_factors` included in its moving average, which is
    sum_t decay^(T-t) factors_t / sum_t decay^(T-t).

    Raises ValueError for a decay outside [0, 1), TypeError for another optimizer's state.

    >>> state = kfac(0.1).init({"W": jnp.zeros((1, 1)), "b": jnp.zeros(1)})
    >>> float(observe(state, Kronecker(jnp.eye(2), jnp.eye(1))).weight)
    1.0
    """
    decay = numbers.fraction("observe", decay=decay)
    if not isinstance(state, KFACState):
        raise TypeError(f"observe: expected a state of kfac, got {type(state).__name__}")
    sums = jax.tree.map(lambda old, new: _as(decay, old) * old + new, state.factors, factors)
    weight = _as(decay, state.weight) * state.weight + 1
    means = jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), sums)
    return state._replace(factors=sums, weight=weight, bases=_bases(means))


def _bases(factors: Tree) -> Any:
    def one(node: Any) -> Any:
        if not isinstance(node, Kronecker):
            return node
        (a, U), (s, V) = jnp.linalg.eigh(node.A), jnp.linalg.eigh(node.S)
        # Rounding may make an eigenvalue of 0 negative.
        return _Basis(jnp.maximum(a, 0), U, jnp.maximum(s, 0), V)

    return jax.tree.map(one, factors, is_leaf=lambda node: isinstance(node, Kronecker))


def _identity(node: Any) -> Any:
    """Factors with which G is the identity, for a dense layer's params or another array."""
    if not _is_dense(node):
        return jnp.ones(node.shape, at_least_float32(node.dtype))
    *copies, d_out, d_in = node["W"].shape
    dtype = at_least_float32(node["W"].dtype)
    sides = (jnp.broadcast_to(jnp.eye(d, dtype=dtype), (*copies, d, d)) for d in (d_in + 1, d_out))
    return Kronecker(*sides)


def _diagonal(factor: Factor, examples: int) -> Array:
    return _over_columns(factor.squared(examples)).total()


class _Block(NamedTuple):
    diagonal: Array
    kronecker: Kronecker | None


def _block(factor: Factor, examples: int) -> _Block:
    diagonal = _diagonal(factor, examples)
    if not isinstance(factor, Outer):
        return _Block(diagonal, None)
    if len(factor.batch) > examples:
        got = f"got position axes of shape {factor.batch[examples:]}"
        expected = "expected dense layers with one position per example"
        raise TypeError(f"kronecker_factors: {expected}, {got}")
    ones = jnp.ones((*factor.right.shape[:-1], 1), factor.right.dtype)
    a = _moment(jnp.concatenate([factor.right, ones], -1))
    # One matrix product with the columns as a batch axis, instead of a sum of one S per column.
    s = _moment(jax.lax.all_gather(factor.left, _AXIS))
    return _Block(diagonal, Kronecker(A=jax.lax.pmean(a, _AXIS), S=s))


def _moment(rows: Array) -> Array:
    """sum_n rows_n rows_n^T, in at least float32."""
    wide = rows.astype(at_least_float32(rows.dtype))
    return Outer(wide, wide).total()


_AXIS = "columns of the Hessian root"


def _over_columns(factor: Factor) -> Factor:
    """The factor summed over the columns c. One of left_c and right_c is the same for every c, so
    sum_c left_c (x) right_c is (sum of left) (x) (mean of right), whichever of them it is."""
    match factor:
        case Outer(left, right):
            return Outer(jax.lax.psum(left, _AXIS), jax.lax.pmean(right, _AXIS))
        case Direct(value, ndim):
            return Direct(jax.lax.psum(value, _AXIS), ndim)
        case Rows(index, value, size):
            return Rows(index, jax.lax.psum(value, _AXIS), size)
        case Masked(inner, mask):
            return Masked(_over_columns(inner), jax.lax.pmean(mask, _AXIS))
    return _over_columns(factor.rows())


def _is_dense(node: Any) -> bool:
    """Whether a node of params is a dense layer's: {"W": (..., d_out, d_in), "b": (..., d_out)}."""
    if not isinstance(node, dict) or node.keys() != {"W", "b"}:
        return False
    return all(hasattr(leaf, "shape") for leaf in node.values()) and (
        node["W"].shape[:-1] == node["b"].shape
    )


def _mean(
    network: Layer,
    loss: Loss,
    root: Root | None,
    reduce: Callable[[Factor, int], Any],
    example_axes: int | None,
) -> Callable[[Params, Tree, Tree], Any]:
    """f(params, x, y) -> reduce(factor, example axes) / m of each parameter, over all columns."""
    root = _root_of(loss, root)
    check_layer("network", network)

    def f(params: Params, x: Tree, y: Tree) -> Any:
        prediction, residuals = network.forward(params, x)
        columns, losses = _columns(loss, root, prediction, y)
        examples = example_shape(losses, example_axes)
        if positions := losses.shape[len(examples) :]:
            # Separate columns for each position's loss: in one column, they would be added.
            each = jnp.eye(math.prod(positions), dtype=columns.dtype)
            ones = (1,) * (1 + len(examples)), (1,) * (prediction.ndim - losses.ndim)
            each = each.reshape(-1, *ones[0], *positions, *ones[1])
            columns = (each * columns).reshape(-1, *prediction.shape)

        def one(dy: Array) -> Any:
            return per_example_backward(network, params, residuals, dy, reduce, examples)

        sums = jax.vmap(one, axis_name=_AXIS, out_axes=None)(columns)
        return jax.tree.map(lambda leaf: leaf / losses.size, sums)

    return f


def _root_of(loss: Loss, root: Root | None) -> Root:
    check_unmixed("curvature", loss)
    root = loss.root if root is None else root
    if root is None:
        raise ValueError(
            "curvature: expected a loss with a Hessian root, got one without: pass "
            "root=root(prediction, target) -> columns (c, ..., k), or Loss(value, gradient, root)"
        )
    return root


def _columns(loss: Loss, root: Root, prediction: Array, y: Tree) -> tuple[Array, Array]:
    """The root's columns (c, ..., k), and the losses."""
    check_array("curvature", prediction, "a network whose prediction is one array")
    columns = root(prediction, y)
    if columns.shape[1:] != prediction.shape:
        got = f"got {columns.shape}"
        raise ValueError(f"root: expected columns of shape (c, *{prediction.shape}), {got}")
    return columns, loss.value(prediction, y)


def _as(number: Any, like: Array) -> Array:
    return jnp.asarray(number, like.dtype)
