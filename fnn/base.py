"""The three protocols of the library: `Layer`, `Loss`, `Optimizer`.

Each is a `NamedTuple` of pure functions. A network is a `Layer`, which has its own derivative,
`backward`; `jax.jit`, `jax.vmap` and `jax.lax.scan` apply to these functions as to any other.

Shapes, in every docstring of the package:

    ...     any number of leading batch axes, the same for all arguments of one call
    d_in    features of a layer's input         d_out   features of its output
    k       outputs of the network: classes, or values to predict
    m       examples in a batch: the product of the batch axes
    n       examples in the data
    l, L    a layer, the number of layers

    x       (..., d_in)   input                 dx      cotangent of x, shape of x
    y       (..., d_out)  output                dy      cotangent of y, shape of y
    params  a pytree of arrays                  dparams cotangent of params
    W       (d_out, d_in) weights; row j belongs to neuron j
    b       (d_out,)      biases

x, y, predictions and targets may be pytrees of arrays that share their leading axes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, NoReturn, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any
"""A pytree of floating-point arrays; `()` for a layer without parameters."""
Tree = Any
"""A pytree of arrays that share their leading axes: an input, an output, or a cotangent of one."""
Residuals = Any
"""A pytree of what `forward` saves for `backward`."""
Grads = tuple[Params, Tree]
"""What `backward` returns: (dparams, dx)."""
ONCE: Any = {"xla_backend_optimization_level": 0}
"""Compiler options of a program that runs a few times: with jax 0.10 it compiles in a fifth of the
time. Newer ones lack the second option."""
if jax.__version_info__[:2] == (0, 10):
    ONCE |= {"xla_cpu_use_fusion_emitters": False}
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(*static: str) -> Callable[[type[T]], type[T]]:
    """A decorator that makes a class a frozen dataclass and a pytree of its fields. Those named in
    `static` are part of the tree structure.

    >>> @pytree("name")
    ... class Named:
    ...     value: Array
    ...     name: str
    >>> jax.tree.leaves(Named(jnp.ones(1), "a"))
    [Array([1.], dtype=float32)]
    """

    def registered(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True)(cls)
        held = [field.name for field in fields(made) if field.name not in static]
        return jax.tree_util.register_dataclass(made, held, list(static))

    return registered


class Layer(NamedTuple):
    """A differentiable function with parameters, and its derivative.

    `init(key) -> params`

    `forward(params, x) -> (y, residuals)`; the residuals hold only what `backward` needs
    and the caller does not already hold.

    `backward(params, residuals, dy, reduce=total) -> (dparams, dx)` is the vector-Jacobian
    product. A layer with parameters describes the per-example gradients of each parameter by a
    factor (`Outer`, `Direct`), calls `reduce` on it, and returns the result unchanged. The
    default, `total`, sums over the batch: plain backpropagation. To change a parameter's
    gradient, change the factor: `reduce(Masked(factor, array))` multiplies it by a constant
    array, and `reduce(Sum(factor, other))` is the gradient of a parameter that is used twice. A
    layer without parameters ignores `reduce`; a layer made of layers passes it on.

    `varying` is None for a layer that is the same function at every call. Otherwise it defines
    how the layer depends on a random key and on statistics: see `Varying` and `at`. The three
    functions above are then the layer without key and statistics.

    `parts(params) -> [(layer, params), ...]`, for a layer made of layers that are applied one
    after another, returns these layers, from input to output, each with its own params. The
    gradient checker uses it to name the first wrong layer of a network.

    >>> import fnn
    >>> double = Layer(
    ...     init=lambda key: (),
    ...     forward=lambda params, x: (2 * x, ()),
    ...     backward=lambda params, residuals, dy, reduce=fnn.total: ((), 2 * dy),
    ... )
    >>> double.forward((), jnp.ones(2))[0]
    Array([2., 2.], dtype=float32)
    """

    init: Callable[[Array], Params]
    forward: Callable[[Params, Any], tuple[Tree, Residuals]]
    backward: Callable[..., Grads]
    varying: "Varying | None" = None
    parts: "Callable[[Params], list[tuple[Layer, Params]]] | None" = None

    def __call__(self, *args: Any) -> NoReturn:
        """Raises TypeError: a layer is not a function, `forward` is."""
        reason = "layer.forward(params, x) returns (y, residuals)"
        raise TypeError(f"a Layer is not a function: {reason}")

    def __repr__(self) -> str:
        """Shows the name of the function that made the layer, for messages and signatures."""
        return f"Layer({getattr(self.forward, '__qualname__', '...').split('.')[0]})"


class Varying(NamedTuple):
    """How a layer depends on a random key and on statistics of the data.

    `at(key, statistics) -> Layer` returns the layer with this key and these statistics fixed, as
    three pure functions. A key means training, None evaluation.

    `measure(params, x, key) -> (y, statistics)` runs the layer forward on the examples x and
    measures the statistics that the layer needs for evaluation.

    >>> import fnn
    >>> def noisy(stddev):  # adds noise in training
    ...     def at(key, statistics):
    ...         if key is None:
    ...             return fnn.identity
    ...         noise = lambda x: x + stddev * jax.random.normal(key, x.shape)
    ...         return fnn.identity._replace(forward=lambda params, x: (noise(x), ()))
    ...     measure = lambda params, x, key: (at(key, ()).forward(params, x)[0], ())
    ...     return fnn.identity._replace(varying=Varying(at, measure))
    >>> fnn.at(noisy(1.0)).forward((), jnp.ones(2))[0]
    Array([1., 1.], dtype=float32)
    """

    at: Callable[[Array | None, Any], Layer]
    measure: Callable[[Params, Any, Array | None], tuple[Any, Any]]


class Loss(NamedTuple):
    """The loss of a prediction, and its derivative.

    `value(prediction, target)` is one loss per example: `(..., k) -> (...)`.

    `gradient(prediction, target)` is d value / d prediction, `(..., k)`, of each example's own
    loss, without the 1/m of the mean over a batch.

    `root(prediction, target)` is None or returns the columns `(c, ..., k)` of a root of the
    Hessian H of each example's loss: H = sum_c s_c s_c^T. `fnn.curvature` needs it.

    `mixes` is True where an example's loss depends on other examples of the batch, as in
    contrastive losses. Per-example statistics and curvature raise TypeError for it.

    >>> import fnn
    >>> fnn.mse.value(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]]))
    Array([5.], dtype=float32)
    """

    value: Callable[[Any, Any], Array]
    gradient: Callable[[Any, Any], Any]
    root: Callable[[Any, Any], Array] | None = None
    mixes: bool = False

    def __call__(self, *args: Any) -> NoReturn:
        """Raises TypeError: a loss is not a function, `value` is."""
        reason = "loss.value(prediction, target) is one loss per example"
        raise TypeError(f"a Loss is not a function: {reason}")


class Optimizer(NamedTuple):
    """A pure update rule.

    `init(params) -> state`: any pytree with `.params` and `.step` (int32, the number of updates
    done), and whatever else the rule needs.

    `update(state, grads) -> state`

    >>> import fnn
    >>> optimizer = fnn.sgd(0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0]))
    >>> state.params, int(state.step)
    (Array([0.5], dtype=float32), 1)
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params], Any]


def at(layer: Layer, key: Array | None = None, statistics: Tree = None) -> Layer:
    """The layer with a random key and statistics fixed: three pure functions.

    A key means training: dropout drops, batch normalisation uses the batch. None means
    evaluation. The argument `statistics` is what the function `statistics` returned, or None. A
    layer that does not vary is returned unchanged.

    >>> import fnn
    >>> fnn.at(fnn.tanh, jax.random.key(0)) is fnn.tanh
    True
    """
    return layer if layer.varying is None else layer.varying.at(key, statistics)


def apply(
    network: Layer, params: Params, x: Tree, key: Array | None = None, statistics: Tree = None
) -> Any:
    """The prediction for x (..., d_in): y of `forward`, without the residuals, of the network `at`
    this key and these statistics. Raises TypeError if network is not a layer.

    >>> import fnn
    >>> apply(fnn.relu, (), jnp.array([-1.0, 1.0]))
    Array([0., 1.], dtype=float32)
    """
    check_layer("apply", network)
    return at(network, key, statistics).forward(params, x)[0]


def statistics(network: Layer, params: Params, x: Tree, key: Array | None = None) -> Any:
    """The statistics of every layer of the network over the examples x (n, ...).

    A tree with each layer's statistics, `()` for a layer that has none. They are measured in one
    forward pass over all of x, not averaged during training: Wu & Johnson 2021, "Rethinking
    Batch in BatchNorm". With a key, random layers act as in training.

    >>> import fnn
    >>> network = fnn.mlp((2, 3, 1))
    >>> fnn.statistics(network, network.init(jax.random.key(0)), jnp.ones((4, 2)))
    ()
    """
    check_layer("statistics", network)
    return measured(network, params, x, key)[1]


def measured(layer: Layer, params: Params, x: Tree, key: Array | None) -> tuple[Any, Any]:
    """(y, statistics) of any layer: `Varying.measure`, or the forward pass and `()`.

    >>> import fnn
    >>> measured(fnn.relu, (), jnp.array([-1.0, 1.0]), None)
    (Array([0., 1.], dtype=float32), ())
    """
    if layer.varying is not None:
        return layer.varying.measure(params, x, key)
    return layer.forward(params, x)[0], ()


def varying_with(combine: Callable[[Layer], Layer], layer: Layer) -> Varying | None:
    """The `varying` of combine(layer), for a combinator whose residuals are the layer's. None if
    the layer does not vary.

    `at` applies combine to the layer at the key and statistics. Statistics are composed as
    residuals are, so `measure` applies it to the layer with its statistics as residuals.

    >>> import fnn
    >>> varying_with(fnn.skip, fnn.tanh) is None
    True
    """
    if layer.varying is None:
        return None
    return Varying(
        lambda key, statistics: combine(at(layer, key, statistics)),
        lambda params, x, key: combine(measuring(layer, key)).forward(params, x),
    )


def measuring(layer: Layer, key: Array | None) -> Layer:
    """The layer with its statistics as residuals; its backward must not be called.

    >>> import fnn
    >>> measuring(fnn.relu, None).forward((), jnp.array([-1.0, 1.0]))
    (Array([0., 1.], dtype=float32), ())
    """
    return layer._replace(forward=lambda params, x: measured(layer, params, x, key), varying=None)


def split(key: Array, n: int = 2) -> Array:
    """n keys from one, as `jax.random.split`.

    Raises TypeError if key is not a key but, for example, a seed.

    >>> split(jax.random.key(0), 3).shape
    (3,)
    """
    check_key(key)
    return jax.random.split(key, n)


def check_key(key: Any) -> None:
    """Raise TypeError if key is not a key but, for example, a seed."""
    if not isinstance(key, jax.Array):
        raise TypeError(f"expected a key such as jax.random.key(0), got {key!r}")


def at_least_float32(dtype: Any) -> Any:
    """The dtype to sum many terms in: float32 for a narrower dtype, which would lose small terms.

    >>> at_least_float32(jnp.bfloat16) == jnp.float32, at_least_float32(jnp.float64) == jnp.float64
    (True, True)
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def is_floating(a: Any) -> bool:
    """Whether a is a floating-point array, of NumPy or JAX, traced or not."""
    return hasattr(a, "dtype") and bool(jnp.issubdtype(a.dtype, jnp.floating))


def check_array(name: str, x: Tree, expected: str = "x to be an array") -> None:
    """Raise TypeError, naming the caller, if x is neither an array nor a number.

    >>> check_array("tanh", (1.0, ()))
    Traceback (most recent call last):
    TypeError: tanh: expected x to be an array, got tuple; forward returns (y, residuals)
    """
    if isinstance(x, tuple | list | dict) or x is None:
        hint = "; forward returns (y, residuals)" if isinstance(x, tuple) and len(x) == 2 else ""
        raise TypeError(f"{name}: expected {expected}, got {type(x).__name__}{hint}")


def check_layer(name: str, layer: Any) -> None:
    """Raise TypeError, naming the caller, if layer is not a `Layer`, or its backward takes no
    `reduce`.

    >>> check_layer("serial: argument 0", jnp.tanh)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: serial: argument 0: expected a Layer, got ...; fnn.elementwise(f, df) makes ...
    """
    if not isinstance(layer, Layer):
        hint = ""
        if isinstance(layer, list | tuple | dict):
            layer, hint = type(layer), "; pass the layers one by one: serial(*layers)"
        elif callable(layer):
            ours = str(getattr(layer, "__module__", "")).startswith("fnn.")
            makes = "fnn.elementwise(f, df) makes one from a function and its derivative"
            hint = f"; {'call it to make one' if ours else makes}"
        raise TypeError(f"{name}: expected a Layer, got {layer!r}{hint}")
    try:
        inspect.signature(layer.backward).bind("params", "residuals", "dy", "reduce")
    except ValueError:
        return  # a callable without a signature
    except TypeError:
        got = f"got backward{inspect.signature(layer.backward)}"
        expected = "expected a layer with backward(params, residuals, dy, reduce=total)"
        raise TypeError(f"{name}: {expected}, {got}") from None


def check_loss(name: str, loss: Any) -> None:
    """Raise TypeError, naming the caller, if loss is not a `Loss`.

    >>> check_loss("objective", jnp.square)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: objective: expected a Loss(value, gradient), got ...
    """
    if not isinstance(loss, Loss):
        ours = getattr(loss, "__module__", "") == "fnn.losses"
        needs = "; fnn.from_loss(value) makes one from a function" if callable(loss) else ""
        hint = "; call it to make one" if ours else needs
        raise TypeError(f"{name}: expected a Loss(value, gradient), got {loss!r}{hint}")


def check_unmixed(name: str, loss: Any) -> None:
    """Raise TypeError, naming the caller, if loss is not a `Loss`, or mixes the examples of a
    batch."""
    check_loss(name, loss)
    if loss.mixes:
        made = getattr(loss.value, "__qualname__", "...").split(".")[0].strip("_")
        mixes = "mixes the examples of a batch (mixes=True), so it has no per-example gradients"
        raise TypeError(f"{name}: the loss {made} {mixes}")


def check_optimizer(name: str, optimizer: Any) -> None:
    """Raise TypeError, naming the caller, if optimizer is not an `Optimizer`.

    >>> import fnn
    >>> check_optimizer("make_step", fnn.adam)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: make_step: expected an Optimizer(init, update), got ...; call it to make one
    """
    if not isinstance(optimizer, Optimizer):
        hint = ""
        if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
            hint = "; wrap it in fnn.from_optax"
        elif getattr(optimizer, "__module__", "") == "fnn.optimizers":
            hint = "; call it to make one"
        raise TypeError(f"{name}: expected an Optimizer(init, update), got {optimizer!r}{hint}")
