"""Statistics of per-example gradients, from one backward pass.

g_n is the gradient of loss_n, the loss of example n, without the 1/m of the mean. For a dense
layer with input a and output cotangent delta it is an outer product, [dW | db]_n =
delta_n [a_n; 1]^T. The statistics are computed from a and delta, without forming g_n, as other
reductions of the factors that backpropagation sums:

    squared_norms           ||g_n||^2 = sum over the layers of (||a_n||^2 + 1) ||delta_n||^2
                            Goodfellow 2015
    gram                    <g_n, g_k> = sum over the layers of (a_n . a_k + 1) (delta_n . delta_k)
    second_moment           (1/m) sum_n g_n^2 = (1/m) (delta^2)^T [a^2; 1]    Dangel et al. 2020
    clipped_value_and_grad  (1/m) sum_n g_n min(1, C / ||g_n||)               Abadi et al. 2016
    cross_gram              <g_n, h_k> between the examples of two sets       Pruthi et al. 2020
    cosines                 <g_n, E g> / (||g_n|| ||E g||)
    gradients               g_n itself
    gradient_noise_scale    trace(Cov g) / ||E g||^2                          McCandlish et al. 2018

Each takes (network, loss) and returns a pure function of (params, x, y), which you can `jax.jit`
and `jax.vmap`. They work for every layer that describes its gradients by factors, in every
combinator; other layers raise the errors of `fnn.backprop.per_example_backward`. Norms, products
and moments are at least float32.

Examples. By default each entry of loss.value is an example, whose loss must depend only on its own
row of x. If the loss has more axes, such as one loss per token of a text whose tokens were mixed,
`example_axes` is the number of leading axes that are examples: with example_axes=1 and losses
(m, tokens) there are m examples, and loss_n is the mean over the tokens of text n. The gradient of
an example is the sum over its positions.

Private training. DP-SGD (Abadi et al. 2016, algorithm 1) clips to C, sums, adds noise of standard
deviation z C, and divides by m:

    private = clipped_value_and_grad(network, loss, C)
    value, grads = private(state.params, x, y)
    state = optimizer.update(state, add_noise(grads, key, z * C / m))

A privacy accountant turns z, m / n and the number of steps into (epsilon, delta).
`docs/experiments.md` shows an example on the digits.

Weights. `fnn.value_and_grad` takes a weight per example, for importance sampling. The sampling
probabilities with the least gradient variance are proportional to ||g_n||, the square root of
`squared_norms`. Alain et al. 2015.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.backprop import example_shape, per_example_backward, weight_of
from fnn.base import Array, Layer, Loss, Params, Tree, at_least_float32, check_layer, check_unmixed
from fnn.reductions import Direct, Factor, Widened, for_each_copy, safe_norm


def squared_norms(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Array]:
    """f(params, x, y) -> ||g_n||^2 over all parameters together, (...).

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> squared_norms(network, fnn.mse)(params, x, y)  # delta is -2 and -6
    Array([24., 36.], dtype=float32)
    """
    square = lambda factor, examples: factor.squared_norm(examples)
    added = lambda losses, norms: _over_parameters(norms, losses.shape, losses.dtype)
    return _statistic(network, loss, square, added, example_axes)


def gram(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Array]:
    """f(params, x, y) -> <g_n, g_k> for each pair of examples, (..., ...): (m, m) for one batch
    axis. It is the empirical tangent kernel, contracted with the losses' gradients.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> gram(network, fnn.mse)(params, x, y)
    Array([[24., 12.],
           [12., 36.]], dtype=float32)
    """
    products = lambda factor, examples: factor.products(examples)
    added = lambda losses, inner: _over_parameters(inner, 2 * losses.shape, losses.dtype)
    return _statistic(network, loss, products, added, example_axes)


def cross_gram(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree, Tree, Tree], Array]:
    """f(params, x, y, x_other, y_other) -> <g_n, h_k> for each example n of (x, y) and k of the
    other set, (..., ... of the other): (m, k) for one batch axis each.

    Times the learning rate it is, to first order, how much a gradient step on example n lowers the
    loss of example k: TracIn sums it over a run's checkpoints. Pruthi et al. 2020.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> cross_gram(network, fnn.mse)(params, x, y, x[:1], y[:1])
    Array([[24.],
           [12.]], dtype=float32)
    """
    reduced = _reduced(network, loss, _kept, example_axes)

    def f(params: Params, x: Tree, y: Tree, x_other: Tree, y_other: Tree) -> Array:
        (losses, ours), (others, theirs) = reduced(params, x, y), reduced(params, x_other, y_other)

        def inner(node: _Normed, other: _Normed) -> Array:
            products = lambda factor, of: factor.products(losses.ndim, of)
            return _each_copy(products, node, losses.ndim)(node.factor, other.factor)

        found = jax.tree.map(inner, ours, theirs, is_leaf=_is_normed)
        return _over_parameters(found, losses.shape + others.shape, losses.dtype)

    return f


def cosines(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Array]:
    """f(params, x, y) -> the cosine between g_n and the mean gradient, over all parameters
    together, (...).

    It is negative for an example whose loss rises in a step of gradient descent on the mean loss,
    such as one with a wrong label. It is NaN if g_n or the mean gradient is 0.

    >>> import fnn
    >>> network = fnn.dense(1, 1)
    >>> params = {"W": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    >>> x, y = jnp.zeros((3, 1)), jnp.array([[1.0], [3.0], [-1.0]])
    >>> cosines(network, fnn.mse)(params, x, y)
    Array([ 1.,  1., -1.], dtype=float32)
    """

    def along(factor: Factor, examples: int) -> tuple[Array, Array, Array]:
        total = factor.total()
        inner = factor.products(examples, Direct(total[None], factor.ndim))[..., 0]
        wide = total.astype(at_least_float32(total.dtype))
        return factor.squared_norm(examples), inner, jnp.square(wide)

    def cosine(losses: Array, found: Any) -> Array:
        over = lambda i, shape: _over_parameters(jax.tree.leaves(found)[i::3], shape, losses.dtype)
        norms, inner, squares = over(0, losses.shape), over(1, losses.shape), over(2, ())
        return inner / (jnp.sqrt(norms) * jnp.sqrt(squares))

    return _statistic(network, loss, along, cosine, example_axes)


def gradients(
    network: Layer, loss: Loss, *, chunk: int | None = None, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Params]:
    """f(params, x, y) -> g_n: a tree like params, each leaf (..., *shape of the parameter) and in
    at least float32.

    The result has m times the size of the parameters. With `chunk`, the backward pass runs over
    that many examples at a time, by `jax.lax.map` over the first axis.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> gradients(network, fnn.mse)(params, x, y)["b"]
    Array([[-2.],
           [-6.]], dtype=float32)
    """
    chunk = None if chunk is None else numbers.count("gradients", chunk=chunk)

    def rows(losses: Array, kept: Any) -> Params:
        def each(node: _Normed) -> Array:
            rows = lambda factor: factor.rows(losses.ndim).value
            return _each_copy(rows, node, losses.ndim, losses.ndim)(node.factor)

        return jax.tree.map(each, kept, is_leaf=_is_normed)

    whole = _statistic(network, loss, _kept, rows, example_axes)

    def f(params: Params, x: Tree, y: Tree) -> Params:
        if chunk is None:
            return whole(params, x, y)
        one = lambda xy: whole(params, *jax.tree.map(lambda a: a[None], xy))
        found = jax.lax.map(one, (x, y), batch_size=chunk)
        return jax.tree.map(lambda g: g.squeeze(1), found)

    return f


def second_moment(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], Params]:
    """f(params, x, y) -> (1/m) sum_n g_n^2, entry by entry: a tree like params.

    It is the diagonal of the empirical Fisher matrix. Minus the square of the mean gradient, it
    is the gradient's variance over the examples.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> second_moment(network, fnn.mse)(params, x, y)["b"]
    Array([20.], dtype=float32)
    """
    squares = lambda factor, examples: factor.squared(examples).total()
    mean = lambda losses, sums: jax.tree.map(lambda leaf: leaf / losses.size, sums)
    return _statistic(network, loss, squares, mean, example_axes)


def clipped_value_and_grad(
    network: Layer, loss: Loss, max_norm: float | Array, *, example_axes: int | None = None
) -> Callable[..., tuple[Array, Params]]:
    """f(params, x, y, weight=None) -> (mean loss, (1/m) sum_n g_n min(1, max_norm / ||g_n||)).

    The norms are over all parameters together, and the losses are not clipped. One backward
    pass: the factors are kept until all layers' norms are known, then summed with each
    example's scale.

    With weight (...), one number per example, both are (1/m) sum_n weight_n (...): the weight
    is applied after clipping. For Poisson sampling at rate q pass all examples: the drawn ones with
    weight 1/q, the others with weight 0.

    The gradient is NaN if max_norm / (m ||g_n||) is below the smallest normal number of its dtype,
    1e-38 in float32, and for layers with positions, such as convolutions, if ||g_n||^2 overflows.

    Raises ValueError for a max_norm that is not above 0; f raises it for weights whose shape
    differs from that of the losses.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> value, grads = clipped_value_and_grad(network, fnn.mse, 3.0)(params, x, y)
    >>> grads["b"].round(3)
    Array([-2.112], dtype=float32)
    """
    max_norm = numbers.bound("clipped_value_and_grad", max_norm=max_norm)
    with_norm = lambda factor, examples: _Normed(factor.norm(examples), factor)
    reduced = _reduced(network, loss, with_norm, example_axes)

    def f(params: Params, x: Tree, y: Tree, weight: Array | None = None) -> tuple[Array, Params]:
        losses, normed = reduced(params, x, y)
        norms = [node.norm for node in jax.tree.leaves(normed, is_leaf=_is_normed)]
        norm_of_all = _norm_of_all(norms, losses.shape, losses.dtype)
        bound = jnp.asarray(max_norm, norm_of_all.dtype) * (1 - _rounding(params))
        excess = norm_of_all / bound
        excess = jnp.maximum(excess, 1)
        # A Newton step from 1 / excess: its derivative has no excess^2, which could overflow.
        inverse = jax.lax.stop_gradient(1 / excess)
        scale = inverse * (2 - excess * inverse) / losses.size
        # An underflowed scale would silently drop the example.
        scale = jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.nan)
        if weight is not None:
            weight = weight_of(losses, weight)
            losses, scale = losses * weight, scale * weight.astype(scale.dtype)

        def clipped(node: _Normed) -> Array:
            sum_of = lambda factor: _weighted_total(factor, scale)
            return _each_copy(sum_of, node, losses.ndim)(node.factor)

        return losses.mean(), jax.tree.map(clipped, normed, is_leaf=_is_normed)

    return f


def _weighted_total(factor: Factor, scale: Array) -> Array:
    """sum_n scale_n g_n, with the scale and the sum in at least float32."""
    dtype = jax.eval_shape(factor.total).dtype
    return Widened(factor, at_least_float32(dtype)).weighted(scale).total().astype(dtype)


def _rounding(params: Params) -> float:
    """The relative error of rounding a gradient to the narrowest parameter's dtype, 0 for float32
    and wider."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return max((float(jnp.finfo(d).eps) for d in dtypes if jnp.finfo(d).bits < 32), default=0.0)


class _Normed(NamedTuple):
    """A factor, kept until the norms of all parameters together are known."""

    norm: Array
    factor: Factor


def _kept(factor: Factor, examples: int) -> _Normed:
    """The factor, with zeros as norms: their shape shows the axes of the copies in a `repeat`."""
    return _Normed(jnp.zeros(factor.batch[:examples]), factor)


def _is_normed(node: Any) -> bool:
    return isinstance(node, _Normed)


def _each_copy(f: Callable[..., Array], node: _Normed, examples: int, out: int = 0) -> Any:
    """f of each copy in a `repeat`, with the copies' axes at `out` in the result."""
    return for_each_copy(f, node.norm.shape[: node.norm.ndim - examples], out)


def add_noise(grads: Params, key: Array, stddev: float | Array) -> Params:
    """grads + stddev * standard normal noise, drawn independently for each entry.

    For DP-SGD, stddev = noise_multiplier * max_norm / m. The noise is `jax.random.normal` in the
    gradient's dtype: suitable for research, but not hardened against attacks on floating-point
    rounding (Mironov 2012). Raises ValueError for a negative stddev.

    >>> add_noise({"b": jnp.zeros(3)}, jax.random.key(0), 0.0)
    {'b': Array([0., 0., 0.], dtype=float32)}
    """
    stddev = numbers.nonnegative("add_noise", stddev=stddev)
    leaves, form = jax.tree.flatten(grads)
    keys = jax.random.split(key, len(leaves)) if leaves else ()

    def noisy(g: Array, key: Array) -> Array:
        return g + jnp.asarray(stddev, g.dtype) * jax.random.normal(key, g.shape, g.dtype)

    return jax.tree.unflatten(form, [noisy(g, k) for g, k in zip(leaves, keys, strict=True)])


class NoiseScale(NamedTuple):
    """Estimates of the gradient's noise, as scalars.

    trace: the trace of the covariance of g_n. squared_norm: that of the mean gradient over the
    distribution from which the batch was drawn. scale = trace / squared_norm: the batch size at
    which noise and signal in the mean gradient are equal.

    >>> NoiseScale(trace=4.0, squared_norm=2.0, scale=2.0).scale
    2.0
    """

    trace: Array
    squared_norm: Array
    scale: Array


def gradient_noise_scale(
    network: Layer, loss: Loss, *, example_axes: int | None = None
) -> Callable[[Params, Tree, Tree], NoiseScale]:
    """f(params, x, y) -> NoiseScale, from one batch. McCandlish et al. 2018, appendix A.1.

    With s = ||(1/m) sum_n g_n||^2 and q = (1/m) sum_n ||g_n||^2,

        trace = m (q - s) / (m - 1),    squared_norm = (m s - q) / (m - 1).

    Both are unbiased, so squared_norm may be negative when noise dominates the mean. Their ratio is
    biased: average both over batches before dividing.

    Raises ValueError for a batch of fewer than two examples.

    >>> import fnn
    >>> network = fnn.dense(2, 1)
    >>> params = {"W": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    >>> x, y = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [3.0]])
    >>> gradient_noise_scale(network, fnn.mse)(params, x, y).trace
    Array(18., dtype=float32)
    """
    both_of = lambda factor, examples: (factor.squared_norm(examples), factor.total())

    def noise(losses: Array, both: Any) -> NoiseScale:
        m = losses.size
        if m < 2:
            raise ValueError(f"gradient_noise_scale: expected at least 2 examples, got {m}")
        norms, sums = (jax.tree.leaves(both)[i::2] for i in range(2))
        q = _over_parameters(norms, losses.shape, losses.dtype).mean()
        s = _over_parameters([jnp.square(g.astype(q.dtype) / m) for g in sums], (), q.dtype)
        trace, norm = m * (q - s) / (m - 1), (m * s - q) / (m - 1)
        return NoiseScale(trace, norm, trace / norm)

    return _statistic(network, loss, both_of, noise, example_axes)


def _statistic(
    network: Layer,
    loss: Loss,
    reduce: Callable[[Factor, int], Any],
    of: Callable[[Array, Any], Any],
    example_axes: int | None,
) -> Callable[[Params, Tree, Tree], Any]:
    """f(params, x, y) -> of(losses, reduce(factor, number of example axes) of each parameter)."""
    reduced = _reduced(network, loss, reduce, example_axes)
    return lambda params, x, y: of(*reduced(params, x, y))


def _reduced(
    network: Layer, loss: Loss, reduce: Callable[[Factor, int], Any], example_axes: int | None
) -> Callable[[Params, Tree, Tree], tuple[Array, Any]]:
    """f(params, x, y) -> (losses (*examples), reduce(factor, example axes) of each parameter)."""
    check_layer("network", network)
    check_unmixed("per_example", loss)

    def f(params: Params, x: Tree, y: Tree) -> tuple[Array, Any]:
        prediction, residuals = network.forward(params, x)
        losses, dy = loss.value(prediction, y), loss.gradient(prediction, y)
        examples = example_shape(losses, example_axes)
        if within := tuple(range(len(examples), losses.ndim)):
            count = math.prod(losses.shape[axis] for axis in within)
            losses, dy = losses.mean(within), jax.tree.map(lambda g: g / count, dy)
        return losses, per_example_backward(network, params, residuals, dy, reduce, examples)

    return f


def _norm_of_all(norms: list[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """The norm over all parameters, from those of each (*copies, *shape)."""
    start = jnp.zeros((1, *shape), at_least_float32(dtype))
    # -1 can't be inferred for an empty batch.
    copies = lambda a: a.reshape(math.prod(a.shape[: a.ndim - len(shape)]), *shape)
    each = [copies(a).astype(start.dtype) for a in norms]
    return safe_norm(jnp.concatenate([start, *each]), (0,))


def _over_parameters(tree: Tree, shape: tuple[int, ...], dtype: Any) -> Array:
    """The sum of all leaves (*copies, *shape), over the copies too."""
    start = jnp.zeros(shape, at_least_float32(dtype))
    leaves = [leaf.astype(start.dtype) for leaf in jax.tree.leaves(tree)]
    return sum((leaf.sum(tuple(range(leaf.ndim - len(shape)))) for leaf in leaves), start=start)
