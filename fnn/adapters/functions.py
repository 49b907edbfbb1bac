"""Networks of other libraries, or any function of parameters and an input, as a `Layer`; any
function of a prediction and a target as a `Loss`.

Their derivative is autodiff's: `jax.vjp` of the function. It is the gradient summed over the batch,
which suffices for training, on a mesh too. Per-example statistics need a function of a single
example (`from_single`); for one of a whole batch they raise a TypeError that names it.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import Array, Grads, Layer, Loss, Params, Residuals, is_floating, pytree
from fnn.reductions import Direct, Factor, Reduce, Whole, total

Apply = Callable[[Params, Any], Any]
"""apply(params, x) -> y."""


def from_function(init: Callable[[Array], Params], apply: Apply) -> Layer:
    """A `Layer` of any pure function apply(params, x) -> y, with autodiff's derivative.

    init(key) -> params, a pytree of floating-point arrays; x and y begin with the example axes.
    Per-example statistics raise TypeError, because apply might mix the examples: use `from_single`
    for a function of one example.

    Raises TypeError for arguments that are not callable and params that are not floating-point.

    >>> double = from_function(lambda key: jnp.array([2.0]), lambda w, x: w * x)
    >>> y, residuals = double.forward(double.init(jax.random.key(0)), jnp.array([[3.0]]))
    >>> double.backward(jnp.array([2.0]), residuals, jnp.ones((1, 1)))
    (Array([3.], dtype=float32), Array([[2.]], dtype=float32))
    """
    name = f"from_function({_name_of(apply)})"
    _check_callable("from_function", init=init, apply=apply)

    def forward(params: Params, x: Any) -> tuple[Any, Residuals]:
        return _pulled(name, apply, params, x)

    def backward(params: Params, residuals: Any, dy: Any, reduce: Reduce = total) -> Grads:
        dparams, dx = residuals(params)(dy)
        return jax.tree.map(lambda g: reduce(Whole(g, name)), dparams), _floats(dx)

    return Layer(init, forward, backward)


def from_loss(value: Callable[[Any, Any], Array]) -> Loss:
    """A `Loss` of value(prediction, target) -> one loss per example, with autodiff's gradient.

    If an example's loss depends on other examples, use from_loss(value)._replace(mixes=True).
    Raises TypeError if value is not callable.

    >>> quartic = from_loss(lambda p, t: ((p - t) ** 4).sum(-1))
    >>> quartic.gradient(jnp.array([[2.0]]), jnp.array([[1.0]]))
    Array([[4.]], dtype=float32)
    """
    _check_callable("from_loss", value=value)

    def gradient(prediction: Any, target: Any) -> Any:
        losses, pull = jax.vjp(lambda prediction: value(prediction, target), prediction)
        return pull(jnp.ones_like(losses))[0]

    return Loss(value, gradient)


def from_single(init: Callable[[Array], Params], apply: Apply, ndim: int = 1) -> Layer:
    """A `Layer` of a pure function apply(params, x) -> y of a single example, whose x has ndim
    axes; it is vmapped over all axes before those.

    As `from_function`, but per-example statistics work.

    Raises TypeError for arguments that are not callable and params that are not floating-point;
    ValueError for an ndim below 0 and for an x with fewer axes.

    >>> scale = from_single(lambda key: jnp.array([2.0]), lambda w, x: w * x)
    >>> x, y = jnp.array([[3.0], [5.0]]), jnp.zeros((2, 1))
    >>> import fnn
    >>> fnn.per_example.squared_norms(scale, fnn.mse)(jnp.array([2.0]), x, y)
    Array([ 1296., 10000.], dtype=float32)
    """
    name = f"from_single({_name_of(apply)})"
    _check_callable("from_single", init=init, apply=apply)
    if ndim < 0:
        raise ValueError(f"{name}: expected ndim of at least 0, got {ndim}")

    def mapped(params: Params, x: Array) -> Any:
        batch = x.shape[: x.ndim - ndim]
        y = jax.vmap(apply, (None, 0))(params, x.reshape(prod(batch), *x.shape[x.ndim - ndim :]))
        return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), y)

    def forward(params: Params, x: Array) -> tuple[Any, Residuals]:
        if jnp.ndim(x) < ndim:
            raise ValueError(f"{name}: expected x with at least {ndim} axes, got {jnp.shape(x)}")
        y, pull = _pulled(name, mapped, params, x)
        return y, (pull, x)

    def backward(params: Params, residuals: Any, dy: Any, reduce: Reduce = total) -> Grads:
        pull, x = residuals
        dparams, dx = pull(params)(dy)
        sums, form = jax.tree.flatten(dparams)
        function = (apply, x.ndim - ndim)
        factors = [_Single(g, params, x, dy, *function, i, g.ndim) for i, g in enumerate(sums)]
        return jax.tree.unflatten(form, [reduce(factor) for factor in factors]), _floats(dx)

    return Layer(init, forward, backward)


@pytree("apply", "batch_axes", "index", "ndim")
class _Single(Factor):
    """Gradients of the parameter with this index: the sum is known; each example's is computed by
    differentiating apply, the function of one example."""

    sum: Array
    params: Params
    x: Array
    dy: Any
    apply: Apply
    batch_axes: int
    index: int
    ndim: int

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.x.shape[: self.batch_axes]

    def total(self) -> Array:
        return self.sum

    def rows(self, examples: int | None = None) -> Direct:
        def gradient(x: Array, dy: Any) -> Array:
            dparams = jax.vjp(lambda params: self.apply(params, x), self.params)[1](dy)[0]
            return jax.tree.leaves(dparams)[self.index]

        for _ in range(self.batch_axes):
            gradient = jax.vmap(gradient)
        return Direct(gradient(self.x, self.dy), self.ndim).rows(examples)


def from_equinox(module: Any, ndim: int = 1) -> Layer:
    """A `Layer` of an Equinox module, or of any pytree that is a function of a single example,
    whose x has ndim axes.

    params is the module with None in place of every leaf that is not a floating-point array, as
    from `equinox.partition(module, equinox.is_inexact_array)`; `init` ignores the key and returns
    the module's own. `equinox.combine(params, module)` is the module with these params.

    Raises TypeError if module is not callable or is a class.

    >>> scale = jax.tree_util.Partial(lambda w, x: w * x, jnp.full(1, 2.0))
    >>> layer = from_equinox(scale)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[3.0]]))[0]
    Array([[6.]], dtype=float32)
    """
    _check_callable("from_equinox", module=module)
    if isinstance(module, type):
        raise TypeError(f"from_equinox: expected a module, got its class {module.__name__}")
    params = jax.tree.map(lambda a: a if is_floating(a) else None, module)

    def apply(params: Params, x: Array) -> Any:
        merge = lambda p, a: a if p is None else p
        return jax.tree.map(merge, params, module, is_leaf=lambda p: p is None)(x)

    apply.__qualname__ = type(module).__name__
    return from_single(lambda key: params, apply, ndim)


def from_flax(module: Any, example: Any) -> Layer:
    """A `Layer` of a Flax (linen) module, or of anything with init(key, x) -> {"params": params}
    and apply({"params": params}, x) -> y. example is an input with a batch axis, or its shapes.

    Raises TypeError if module has no init or apply; ValueError for a module with collections other
    than params, such as the running averages of batch normalisation.

    >>> class Scale:  # as a linen module
    ...     init = staticmethod(lambda key, x: {"params": {"w": jnp.full(1, 2.0)}})
    ...     apply = staticmethod(lambda variables, x: variables["params"]["w"] * x)
    >>> layer = from_flax(Scale, jnp.ones((1, 1)))
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[3.0]]))[0]
    Array([[6.]], dtype=float32)
    """
    if not (hasattr(module, "init") and hasattr(module, "apply")):
        raise TypeError(f"from_flax: expected init and apply, got {type(module).__name__}")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), example)
    collections = set(jax.eval_shape(module.init, jax.random.key(0), shapes))
    if not collections <= {"params"}:
        got = f"expected a module with params only, got {sorted(collections)}"
        other = "from_function(init, apply) takes a function that has the other collections"
        raise ValueError(f"from_flax: {got}; {other}")

    def init(key: Array) -> Params:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return module.init(key, zeros).get("params", ())

    def apply(params: Params, x: Any) -> Any:
        return module.apply(dict.fromkeys(collections, params), x)

    apply.__qualname__ = type(module).__name__
    return from_function(init, apply)


def _pulled(name: str, apply: Apply, params: Params, x: Any) -> tuple[Any, Residuals]:
    """y = apply(params, x), and f with f(params) = its vector-Jacobian product: a pytree of the
    residuals without the params, which the caller of backward has."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not is_floating(leaf):
            where = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{name}: expected floating-point arrays, {where} is {leaf!r}")
    y, pull = jax.vjp(apply, params, x)
    held, form = jax.tree.flatten(pull)
    place = {id(p): i for i, p in enumerate(jax.tree.leaves(params))}
    places = [place.get(id(a)) for a in held]
    own = [a for a, i in zip(held, places, strict=True) if i is None]

    def with_params(own: list[Any], params: Params) -> Any:
        rest, ours = iter(own), jax.tree.leaves(params)
        return jax.tree.unflatten(form, [next(rest) if i is None else ours[i] for i in places])

    return y, jax.tree_util.Partial(with_params, own)


def _floats(dx: Any) -> Any:
    """dx with None for inputs without a gradient, such as integer codes."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, dx)


def _check_callable(name: str, **functions: Any) -> None:
    for argument, value in functions.items():
        if not callable(value):
            raise TypeError(f"{name}: expected {argument} to be a function, got {value!r}")


def _name_of(f: Callable[..., Any]) -> str:
    return str(getattr(f, "__qualname__", type(f).__name__)).split(".")[-1]
