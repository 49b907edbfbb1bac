"""A composition as a network of fnn and as its twin in NumPy, which carries every derivative with
it (`duals`): one evaluation gives each example's own gradient, from which all else follows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.soak import duals, ends, nestings, parts
from benchmarks.soak.ends import ENDS, HEADS, K, M
from benchmarks.soak.parts import PARTS, Node, When, Where

D = 4
CODES = 5


class Composition(NamedTuple):
    """A network with its loss and its numbers, and what is compared."""

    node: Node
    axes: tuple[int, ...]
    embedded: bool
    head: str
    loss: str
    variant: int
    dtype: str
    mode: str
    seed: int
    checks: tuple[str, ...]

    @property
    def end(self) -> ends.End:
        """The loss and what belongs to it."""
        return ENDS[self.loss][self.variant]

    @property
    def narrow(self) -> bool:
        """Whether any of it is computed in less than float64."""
        return self.dtype != "float64" or "compute_in" in self.node.names()

    @property
    def varies(self) -> bool:
        """Whether it acts in training as it does nowhere else."""
        return any(PARTS[name].varies for name in self.node.names())

    @property
    def rows(self) -> bool:
        """Whether each example has a gradient of its own."""
        names = self.node.names()
        mixed = self.mode == "training" and "batch_norm" in names
        return not mixed and not self.end.loss.mixes and all(PARTS[name].rows for name in names)


def network(composition: Composition) -> fnn.Layer:
    """The composition in fnn."""
    first = fnn.embedding(CODES, D) if composition.embedded else fnn.identity
    body = parts.layer(composition.node, Where(composition.axes, D))
    return fnn.serial(first, body, HEADS[composition.head].layer(D), composition.end.output)


def predicted(composition: Composition, p: Any, x: Any, when: When) -> Any:
    """The network's prediction in NumPy, at its params."""
    _, at, _, _ = when.split(4)
    x = p[0]["table"][np.asarray(x)] if composition.embedded else x
    x = parts.plain(composition.node, Where(composition.axes, D), p[1], x, at)
    y = HEADS[composition.head].plain(p[2], x)
    return y if isinstance(y, tuple) else composition.end.of_output(y)


class Numbers(NamedTuple):
    """What a composition is evaluated at, as NumPy's arrays."""

    params: Any
    x: np.ndarray
    y: Any
    v: Any
    weight: np.ndarray
    when: When

    @classmethod
    def of(cls, composition: Composition, net: fnn.Layer, m: int = M) -> "Numbers":
        """Random ones, as the composition's dtype has them."""
        rng = np.random.default_rng(composition.seed)
        number = lambda shape, by=1.0: duals.rounded(rng.normal(size=shape) * by, composition.dtype)
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        params = jax.tree.map(lambda a: number(a.shape, 0.6), shapes)
        v = jax.tree.map(lambda a: number(a.shape), shapes)
        shape = (m, *composition.axes)
        # Each code as often as any other: examples that are all alike have no variance.
        codes = np.resize(rng.permutation(CODES), shape)
        x = codes if composition.embedded else number((*shape, D))
        leading = shape if HEADS[composition.head].per_token else (m,)
        y = ends.target(composition.end.targets, rng, (*leading, K))
        as_kept = lambda a: a if a.dtype.kind == "i" else duals.rounded(a, composition.dtype)
        y = jax.tree.map(as_kept, y)
        weight = duals.rounded(rng.uniform(0.2, 2, leading), composition.dtype)
        key = jax.random.key(composition.seed) if composition.mode == "training" else None
        return cls(params, x, y, v, weight, When(composition.mode, key))


class Twin(NamedTuple):
    """The twin's results: losses (m,) of the examples, (m, tokens) where each token has one;
    `rows` (m, parameters), each example's gradient; dx, the mean loss's; the predictions and their
    Jacobians (predictions, K, parameters)."""

    prediction: list[np.ndarray]
    losses: np.ndarray
    each: np.ndarray
    rows: np.ndarray
    dx: np.ndarray
    jacobian: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The gradient of the mean loss."""
        return self.rows.mean(0)


def twin(composition: Composition, numbers: Numbers, direction: Any = None) -> Twin:
    """Value and derivatives in NumPy; along a direction of the params in imaginary parts."""
    p, x = numbers.params, numbers.x
    if composition.embedded:
        p = duals.variables(p, direction)
    else:
        moves = None if direction is None else (direction, np.zeros_like(x))
        p, x = duals.variables((p, x), moves)
    with np.errstate(all="ignore"):
        y = predicted(composition, p, x, numbers.when)
        losses = composition.end.plain(y, numbers.y)
    heads = list(y) if isinstance(y, tuple) else [y]
    m, size = len(losses.v), sum(a.size for a in duals.leaves(numbers.params))
    each = losses.t.reshape(len(losses.t), m, -1)
    rows, rest = each[:size].mean(-1).T, each[size:].mean((1, 2))
    dx = rest.reshape(np.shape(numbers.x)) if not composition.embedded else np.zeros(0)
    jacobian = np.moveaxis(heads[0].t[:size].reshape(size, -1, heads[0].shape[-1]), 0, -1)
    return Twin([a.v for a in heads], losses.v, each[:size], rows, dx, jacobian)


def along(numbers: np.ndarray) -> np.ndarray:
    """The derivative along the direction in which a twin was moved."""
    return numbers.imag / duals.STEP


def _hessians(composition: Composition, numbers: Numbers, found: Twin) -> np.ndarray:
    """That of each prediction's loss, (predictions, K, K)."""
    prediction = found.prediction[0]
    columns = []
    for k in range(K):
        move = 1j * duals.STEP * np.eye(K)[k]
        t = np.broadcast_to(
            np.eye(K).reshape(K, *(1,) * (prediction.ndim - 1), K), (K, *prediction.shape)
        )
        losses = composition.end.plain(duals.Dual(prediction + move, t), numbers.y)
        columns.append(along(losses.t).reshape(K, -1))
    return np.array(columns).transpose(2, 0, 1)


def gauss_newton(composition: Composition, numbers: Numbers, found: Twin) -> np.ndarray:
    """The generalised Gauss-Newton matrix over all parameters."""
    J, H = found.jacobian, _hessians(composition, numbers, found)
    return np.einsum("nkp,nkl,nlq->pq", J, H, J) / len(J)


def trained(
    composition: Composition, numbers: Numbers, rule: nestings.Spec, steps: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The parameters after these steps in NumPy, the losses before each, and whether a sign was
    taken of what is 0 up to rounding."""
    name = lambda found: {f"{i:02}": a for i, a in enumerate(found)}
    moving, losses = nestings.Twin(rule, name(duals.leaves(numbers.params))), []
    held = lambda: [moving.params[key] for key in sorted(moving.params)]
    for step in range(steps):
        when = numbers.when
        if when.key is not None:  # a step draws by its number, and has a key for `augment` too
            key = jax.random.split(jax.random.fold_in(when.key, step))[0]
            when = when._replace(key=key)
        params = duals.rebuilt(numbers.params, iter(held()))
        found = twin(composition, numbers._replace(params=params, when=when))
        losses.append(found.losses.mean())
        parts_of = np.split(found.mean, places(params))
        shaped = [a.reshape(p.shape) for a, p in zip(parts_of, duals.leaves(params), strict=True)]
        moving.update(name(shaped))
    return flat(held()), np.array(losses), moving.tied


def places(params: Any) -> np.ndarray:
    """Where the arrays of params begin in their entries, but the first."""
    return np.cumsum([a.size for a in duals.leaves(params)])[:-1]


def arrays(composition: Composition, tree: Any) -> Any:
    """JAX's arrays in the composition's dtype; integers in 32 bits."""
    dtypes = {"i": jnp.dtype("int32"), "f": jnp.dtype(composition.dtype)}
    return jax.tree.map(lambda a: jax.device_put(a.astype(dtypes[a.dtype.kind])), tree)


def flat(tree: Any) -> np.ndarray:
    """All entries of a tree, one after another."""
    leaves = [np.ravel(np.asarray(leaf)).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([*leaves, np.zeros(0)])
