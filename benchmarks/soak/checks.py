"""What is compared of a composition: what fnn computes, and the same numbers from its twin."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.soak import duals, nestings
from benchmarks.soak.ends import HEADS, M
from benchmarks.soak.twins import (
    Composition,
    Numbers,
    Twin,
    along,
    arrays,
    flat,
    gauss_newton,
    network,
    places,
    trained,
    twin,
)
from fnn import curvature, gradients, per_example


class Case(NamedTuple):
    """A composition in one form of numbers: what both sides of a check are made of."""

    composition: Composition
    net: fnn.Layer
    numbers: Numbers

    @property
    def loss(self) -> fnn.Loss:
        """The loss."""
        return self.composition.end.loss

    @property
    def options(self) -> dict[str, int]:
        """Of a statistic: each text is an example."""
        return {"example_axes": 1} if HEADS[self.composition.head].per_token else {}

    def statistic(self, make: Callable[..., Any], *more: Any, **options: Any) -> Any:
        """make(network, loss, ...) of `per_example` or `curvature`."""
        return make(self.net, self.loss, *more, **self.options, **options)


class Check(NamedTuple):
    """ours(case) -> a function of (params, x, y); theirs(case, twin) -> the same numbers, flat.

    covers: the public names in it. loose: how much farther than others rounding carries it.
    """

    covers: str
    ours: Callable[[Case], Callable[[Any, Any, Any], Any]]
    theirs: Callable[[Case, Twin], np.ndarray]
    fits: Callable[[Composition], bool] = lambda composition: composition.rows
    often: bool = True
    loose: float = 1.0


def _bound(case: Case) -> float:
    """A norm above some examples' gradients and below others'."""
    return 0.5 + case.composition.seed % 7 / 4


def _clipped(case: Case, found: Twin, weight: np.ndarray | float = 1.0) -> np.ndarray:
    norms = np.linalg.norm(found.rows, axis=1)
    scale = weight / np.maximum(1, norms / _bound(case))
    return (found.rows * scale[:, None]).mean(0)


def _of_weighted(case: Case) -> Callable[..., Any]:
    f = case.statistic(per_example.clipped_value_and_grad, _bound(case))
    return lambda params, x, y: f(params, x, y, arrays(case.composition, case.numbers.weight))[1]


def _noise_scale(case: Case, found: Twin) -> np.ndarray:
    s, q = (found.mean**2).sum(), (found.rows**2).sum(1).mean()
    return np.array([M * (q - s) / (M - 1), (M * s - q) / (M - 1)])


def _cosines(case: Case, found: Twin) -> np.ndarray:
    rows, mean = found.rows, found.mean
    return rows @ mean / np.linalg.norm(rows, axis=1) / np.linalg.norm(mean)


def _other(case: Case) -> Callable[..., Any]:
    f = case.statistic(per_example.cross_gram)
    return lambda params, x, y: f(params, x, y, x[::-1], jax.tree.map(lambda a: a[::-1], y))


def _in_rows(case: Case, chunk: int | None = None) -> Callable[..., Any]:
    f = case.statistic(per_example.gradients, chunk=chunk)

    def ours(params: Any, x: Any, y: Any) -> Any:
        leaves = [leaf.reshape(M, -1) for leaf in jax.tree.leaves(f(params, x, y))]
        return jnp.concatenate([leaf.astype(leaves[0].dtype) for leaf in leaves], 1)

    return ours


def _weighted(case: Case) -> Callable[..., Any]:
    f = fnn.value_and_grad(case.net, case.loss)
    return lambda params, x, y: f(params, x, y, arrays(case.composition, case.numbers.weight))


def _by_weights(case: Case, found: Twin) -> np.ndarray:
    weight = case.numbers.weight
    count = found.each.shape[1] * found.each.shape[2]
    each = weight.reshape(1, *found.each.shape[1:])
    return np.append((weight * found.losses).mean(), (found.each * each).sum((1, 2)) / count)


def _along_v(make: Callable[..., Any]) -> Callable[[Case], Callable[..., Any]]:
    def ours(case: Case) -> Callable[..., Any]:
        v = arrays(case.composition, case.numbers.v)
        return lambda params, x, y: make(case.net, case.loss)(params, x, y, v)

    return ours


def _gradient(make: Callable[[Any, Any], Any], *more: Any) -> Callable[[Case], Callable[..., Any]]:
    """A gradient made of the network's own by a function of `gradients`."""

    def ours(case: Case) -> Callable[..., Any]:
        bound = more or (_bound(case),)
        f = make(gradients.of(case.net, case.loss), *bound)
        return lambda params, x, y: f(params, (x, y), jax.random.key(0))[1]

    return ours


def _sam(case: Case, found: Twin) -> np.ndarray:
    g = found.mean
    move = iter(np.split(0.05 * g / np.linalg.norm(g), places(case.numbers.params)))
    params = duals.mapped(lambda p: p + next(move).reshape(p.shape), case.numbers.params)
    return twin(case.composition, case.numbers._replace(params=params)).mean


def _bounded(case: Case, found: Twin) -> np.ndarray:
    return found.mean / max(1, np.linalg.norm(found.mean) / _bound(case))


def _hvp(case: Case, found: Twin) -> np.ndarray:
    return along(twin(case.composition, case.numbers, case.numbers.v).rows).mean(0)


def _matrix(case: Case, found: Twin) -> np.ndarray:
    return gauss_newton(case.composition, case.numbers, found)


def _has_root(composition: Composition) -> bool:
    return composition.rows and composition.end.loss.root is not None


def _through_jax(case: Case) -> Callable[..., Any]:
    """Reverse and forward mode through `differentiable`: the gradient, dx, and the prediction's
    derivative along v."""
    apply = fnn.differentiable(case.net)
    v = arrays(case.composition, case.numbers.v)

    def ours(params: Any, x: Any, y: Any) -> Any:
        prediction, pull = jax.vjp(lambda params: apply(params, x), params)
        dy = jax.tree.map(lambda g: g / M, case.loss.gradient(prediction, y))
        pushed = jax.jvp(lambda params: apply(params, x), (params,), (v,))[1]
        return pull(dy)[0], pushed

    return ours


def _jax_twin(case: Case, found: Twin) -> np.ndarray:
    tokens = found.each.shape[-1]
    pushed = found.jacobian @ flat(case.numbers.v)
    return np.concatenate([found.mean * tokens, pushed.ravel()])


def _two_moments(case: Case) -> Callable[..., Any]:
    """s^T G s and s^T G^2 s from two steps of Lanczos' iteration, s of length 1 along v."""
    product = curvature.gauss_newton_vector_product(case.net, case.loss)
    v = arrays(case.composition, case.numbers.v)

    def ours(params: Any, x: Any, y: Any) -> Any:
        found = curvature.lanczos(lambda u: product(params, x, y, u), v, 2)
        return jnp.stack([found.weights @ found.values**i for i in (1, 2)])

    return ours


def _of_lanczos(case: Case, found: Twin) -> np.ndarray:
    s = flat(case.numbers.v)
    s = s / np.linalg.norm(s)
    Gs = _matrix(case, found) @ s
    return np.array([s @ Gs, Gs @ Gs])


def _alike(case: Case) -> Case:
    """All examples the first one: the Kronecker factors are then exact."""
    first = lambda a: np.repeat(a[:1], M, 0)
    x, y = first(case.numbers.x), duals.mapped(first, case.numbers.y)
    return case._replace(numbers=case.numbers._replace(x=x, y=y))


def _natural(case: Case) -> Callable[..., Any]:
    """One update by `kfac` with the factors of examples that are all alike."""
    alike = _alike(case)

    def ours(params: Any, x: Any, y: Any) -> Any:
        x, y = arrays(alike.composition, (alike.numbers.x, alike.numbers.y))
        factors = curvature.kronecker_factors(case.net, case.loss)(params, x, y)
        optimizer = curvature.kfac(0.3, damping=0.1)
        state = curvature.observe(optimizer.init(params), factors)
        grads = fnn.value_and_grad(case.net, case.loss)(params, x, y)[1]
        return optimizer.update(state, grads).params

    return ours


def _naturally(case: Case, found: Twin) -> np.ndarray:
    case = _alike(case)
    found = twin(case.composition, case.numbers)
    G, g, place, moves = _matrix(case, found), found.mean, 0, []

    def move(node: Any) -> None:
        nonlocal place
        if isinstance(node, dict) and node.keys() != {"W", "b"}:
            node = tuple(node[key] for key in sorted(node))
        if isinstance(node, tuple):
            for part in node:
                move(part)
            return
        block = slice(place, place + sum(a.size for a in duals.leaves(node)))
        place, of_block = block.stop, G[block, block]
        of_block = of_block if isinstance(node, dict) else np.diag(np.diag(of_block))
        moves.append(np.linalg.solve(of_block + 0.1 * np.eye(len(of_block)), g[block]))

    move(case.numbers.params)
    return flat(case.numbers.params) - 0.3 * np.concatenate(moves)


def _is_plainly_dense(composition: Composition) -> bool:
    """Whether every W with a bias is a dense layer's, stated as such, at one position."""
    without = {"masked", "frozen", "lora", "compute_in", "repeat", "reversible", "from_single",
               "dropout", "replicated", "fully_sharded"}  # fmt: skip
    fits = _has_root(composition) and composition.axes == () and composition.dtype == "float64"
    return fits and not composition.node.names() & without


def _stepped(case: Case) -> Callable[..., Any]:
    """Three steps with a random optimizer."""
    spec = _spec(case)

    def ours(params: Any, x: Any, y: Any) -> Any:
        optimizer = nestings.optimizer(spec)
        step = fnn.make_step(network(case.composition), case.loss, optimizer)
        state = optimizer.init(params)
        for _ in range(3):
            state, _ = step(state, (x, y), case.numbers.when.key)
        return state.params

    return ours


def _spec(case: Case) -> nestings.Spec:
    rng = random.Random(case.composition.seed)
    return nestings.nesting(rng, rng.choice([0, 1, 2]))


def _step_twin(case: Case, found: Twin) -> np.ndarray:
    """The parameters after the same steps; NaN where a sign was taken of rounding."""
    ends_at, _, tied = trained(case.composition, case.numbers, _spec(case), 3)
    return ends_at * np.nan if tied else ends_at


def _trains(composition: Composition) -> bool:
    acts = composition.mode == "training" or not composition.varies
    return acts and not composition.narrow


CHECKS: dict[str, Check] = {
    "squared_norms": Check(
        "per_example.squared_norms",
        lambda case: case.statistic(per_example.squared_norms),
        lambda case, found: (found.rows**2).sum(1),
    ),
    "gram": Check(
        "per_example.gram",
        lambda case: case.statistic(per_example.gram),
        lambda case, found: found.rows @ found.rows.T,
    ),
    "cross_gram": Check(
        "per_example.cross_gram",
        _other,
        lambda case, found: found.rows @ found.rows[::-1].T,
        # Dropout draws by an example's place.
        lambda composition: composition.rows and composition.mode != "training",
    ),
    "second_moment": Check(
        "per_example.second_moment",
        lambda case: case.statistic(per_example.second_moment),
        lambda case, found: (found.rows**2).mean(0),
    ),
    "clipped_value_and_grad": Check(
        "per_example.clipped_value_and_grad",
        lambda case: case.statistic(per_example.clipped_value_and_grad, _bound(case)),
        lambda case, found: np.append(found.losses.mean(), _clipped(case, found)),
    ),
    "cosines": Check(
        "per_example.cosines", lambda case: case.statistic(per_example.cosines), _cosines
    ),
    "gradients": Check("per_example.gradients", _in_rows, lambda case, found: found.rows),
    "gradient_noise_scale": Check(
        "per_example.gradient_noise_scale",
        lambda case: lambda *a: case.statistic(per_example.gradient_noise_scale)(*a)[:2],
        _noise_scale,
    ),
    "value_and_grad": Check(
        "value_and_grad",
        lambda case: fnn.value_and_grad(case.net, case.loss),
        lambda case, found: np.append(found.losses.mean(), found.mean),
        lambda composition: True,
    ),
    "objective": Check(
        "objective",
        lambda case: fnn.objective(case.net, case.loss),
        lambda case, found: found.losses.mean(),
        lambda composition: True,
    ),
    "weight": Check(
        "value_and_grad", _weighted, _by_weights, lambda composition: not composition.end.loss.mixes
    ),
    "ggn_diagonal": Check(
        "curvature.ggn_diagonal",
        lambda case: case.statistic(curvature.ggn_diagonal),
        lambda case, found: np.diag(_matrix(case, found)),
        _has_root,
    ),
    "gauss_newton_vector_product": Check(
        "curvature.gauss_newton_vector_product",
        _along_v(curvature.gauss_newton_vector_product),
        lambda case, found: _matrix(case, found) @ flat(case.numbers.v),
        lambda composition: _has_root(composition) or composition.end.loss.root is not None,
    ),
    "hessian_vector_product": Check(
        "curvature.hessian_vector_product",
        _along_v(curvature.hessian_vector_product),
        _hvp,
        lambda composition: True,
        loose=8.0,
    ),
    "clipped, weighted": Check(
        "per_example.clipped_value_and_grad",
        _of_weighted,
        lambda case, found: _clipped(case, found, case.numbers.weight),
        lambda composition: composition.rows and not HEADS[composition.head].per_token,
        often=False,
    ),
    "gradients, in chunks": Check(
        "per_example.gradients",
        partial(_in_rows, chunk=2),
        lambda case, found: found.rows,
        lambda composition: composition.rows and composition.mode != "training",
        often=False,
    ),
    "sam": Check(
        "gradients.sam gradients.of",
        _gradient(gradients.sam, 0.05),
        _sam,
        lambda composition: composition.mode != "evaluation",  # statistics stay where they were
        often=False,
    ),
    "clipped": Check(
        "gradients.clipped",
        _gradient(gradients.clipped),
        _bounded,
        lambda composition: True,
        often=False,
    ),
    "noisy": Check(
        "gradients.noisy",
        _gradient(gradients.noisy, 0.0),
        lambda case, found: found.mean,
        lambda composition: True,
        often=False,
    ),
    "microbatches": Check(
        "gradients.microbatches",
        _gradient(gradients.microbatches, 2),
        lambda case, found: found.mean,
        lambda composition: composition.mode != "training" and not composition.end.loss.mixes,
        often=False,
    ),
    "differentiable": Check(
        "differentiable",
        _through_jax,
        _jax_twin,
        lambda composition: composition.head != "two",
        often=False,
    ),
    "lanczos": Check("curvature.lanczos", _two_moments, _of_lanczos, _has_root, often=False),
    "kfac": Check(
        "curvature.kfac curvature.observe curvature.kronecker_factors",
        _natural,
        _naturally,
        _is_plainly_dense,
        often=False,
    ),
    "step": Check("make_step", _stepped, _step_twin, _trains, often=False),
}


def _first(case: Case) -> Callable[..., Any]:
    """The prediction, and the mean loss with its gradients by params and input."""

    def ours(params: Any, x: Any, y: Any) -> Any:
        prediction, residuals = case.net.forward(params, x)
        losses, dy = case.loss.value(prediction, y), case.loss.gradient(prediction, y)
        dy = jax.tree.map(lambda g: g / losses.size, dy)
        return prediction, losses.mean(), *case.net.backward(params, residuals, dy)

    return ours


FIRST = Check(
    "total",
    _first,
    lambda case, found: np.concatenate(
        [flat(found.prediction), [found.losses.mean()], found.mean, found.dx.ravel()]
    ),
)
