"""Derivative rules out of JAX, optax and Flax as their packages have them, judged by the checkers.

Each rule is checked as it is, against the same function in plain operations, and with one
operation of its pullback changed: an addition for a subtraction, one branch for the other. The
pullback is traced, and one equation in it is replaced; what this leaves as it was is no bug.

    fnn             verify.check_custom with the plain function
    jax             jax.test_util.check_grads, float32
    jax float64     the same in float64
    chex            chex.assert_numerical_grads, order 1
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import flax.linen.fp8_ops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import special
from jax.test_util import check_grads

from fnn import verify

CHANGES = 4
"""Changed copies of each rule, at most."""


class Rule(NamedTuple):
    """A function with a derivative rule of its own, the same in plain operations, and inputs."""

    name: str
    f: Callable[..., Any]
    plain: Callable[..., Any]
    args: tuple[Any, ...]


def _series(term: Callable[[Any, int], Any], terms: int = 30) -> Callable[[Any], Any]:
    return lambda x: sum(term(x, k) for k in range(terms))


def _odd_factorial(n: int) -> float:
    return float(math.prod(range(1, n + 1, 2)))


def _det(a: Any) -> Any:
    (a, b, c), (d, e, f), (g, h, i) = a
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _simplex(x: Any) -> Any:
    """The projection on the unit simplex, its support taken as it is."""
    ordered = -jnp.sort(-x)
    sums = jnp.cumsum(ordered)
    count = (ordered - (sums - 1) / jnp.arange(1, len(x) + 1) > 0).sum()
    support = x >= ordered[count - 1]
    return jnp.where(support, x - (jnp.where(support, x, 0).sum() - 1) / count, 0)


def _inverse_rows(a: Any) -> Any:
    return jnp.linalg.solve(a.T @ a, a.T)


X = jnp.array([[0.3, -1.2, 0.7], [1.4, -0.5, 2.2]])
P = jnp.array([[0.3, 0.12, 0.7], [0.44, 0.95, 0.22]])
Y = jnp.array([[0.6, 1.2, -0.4], [-1.1, 0.2, 0.9]])
A = jnp.array([[2.0, 0.3, -0.4], [0.1, 1.5, 0.7], [-0.2, 0.6, 1.1]])
TALL = jnp.array([[2.0, 0.3], [0.1, 1.5], [-0.2, 0.6]])
WEIGHTS = jnp.array([1.0, 0.5, 2.0])
DOT = (((1,), (0,)), ((), ()))

RULES = [
    Rule("jax.nn.relu", jax.nn.relu, lambda x: jnp.where(x > 0, x, 0), (X,)),
    Rule("jax.nn.relu6", jax.nn.relu6, lambda x: jnp.where(x > 0, jnp.where(x < 6, x, 6), 0),
        (5 * X,)),
    Rule("jnp.logaddexp", jnp.logaddexp, lambda x, y: jnp.log(jnp.exp(x) + jnp.exp(y)), (X, Y)),
    Rule("jnp.logaddexp2", jnp.logaddexp2, lambda x, y: jnp.log2(2**x + 2**y), (X, Y)),
    Rule("jax.nn.softplus", jax.nn.softplus, lambda x: jnp.log1p(jnp.exp(x)), (X,)),
    Rule("jnp.sinc", jnp.sinc, lambda x: jnp.sin(jnp.pi * x) / (jnp.pi * x), (X,)),
    Rule("jnp.i0", jnp.i0, _series(lambda x, k: (x * x / 4) ** k / float(math.factorial(k) ** 2)),
        (X,)),
    Rule("jnp.linalg.det", jnp.linalg.det, _det, (A,)),
    Rule("jnp.linalg.slogdet", lambda a: jnp.linalg.slogdet(a)[1], lambda a: jnp.log(_det(a)),
        (A,)),
    Rule("jnp.linalg.pinv", jnp.linalg.pinv, _inverse_rows, (TALL,)),
    Rule("special.logit", special.logit, lambda p: jnp.log(p) - jnp.log(1 - p), (P,)),
    Rule("special.xlogy", special.xlogy, lambda x, y: x * jnp.log(y), (X, P)),
    Rule("special.xlog1py", special.xlog1py, lambda x, y: x * jnp.log1p(y), (X, P)),
    Rule("special.entr", special.entr, lambda p: -p * jnp.log(p), (P,)),
    Rule("special.kl_div", special.kl_div, lambda p, q: p * jnp.log(p / q) - p + q, (P, P[::-1])),
    Rule("special.rel_entr", special.rel_entr, lambda p, q: p * jnp.log(p / q), (P, P[::-1])),
    Rule(
        "special.log_ndtr", special.log_ndtr,
        lambda x: jnp.log(special.erfc(-x / math.sqrt(2)) / 2), (X,),
    ),
    Rule("special.erfcx", special.erfcx, lambda x: jnp.exp(x * x) * special.erfc(x), (X,)),
    Rule(
        "special.dawsn", special.dawsn,
        _series(lambda x, k: (-2.0) ** k * x ** (2 * k + 1) / _odd_factorial(2 * k + 1)), (P,),
    ),
    Rule(
        "special.expi", special.expi,
        lambda x: np.euler_gamma + jnp.log(x) + _series(
            lambda x, k: x ** (k + 1) / float((k + 1) * math.factorial(k + 1)))(x), (P,),
    ),
    Rule(
        "special.fresnel", lambda x: special.fresnel(x)[0],
        _series(lambda x, k: (-1) ** k * (math.pi / 2) ** (2 * k + 1) * x ** (4 * k + 3)
            / float(math.factorial(2 * k + 1) * (4 * k + 3)), 12), (P,),
    ),
    Rule("optax.projection_simplex", optax.projections.projection_simplex, _simplex, (X[1],)),
    Rule("optax.projection_l1_sphere", lambda x: optax.projections.projection_l1_ball(x, 1.0),
        lambda x: jnp.sign(x) * _simplex(jnp.abs(x)), (X[0],)),
    Rule("optax.sparsemax_loss", optax.losses.sparsemax_loss,
        lambda x, y: jnp.where(
            (z := (2 * y - 1) * x) <= -1, -z, jnp.where(z >= 1, 0, (z - 1) ** 2 / 4)),
        (X, jnp.array([[1, 0, 1], [0, 0, 1]]))),
    Rule("optax.multiclass_sparsemax_loss", optax.losses.multiclass_sparsemax_loss,
        jax.vmap(lambda x, i: (p := _simplex(x)) @ x - (p @ p) / 2 - x[i] + 0.5),
        (X, jnp.array([1, 2]))),
    Rule("flax dot_general", lambda a, b: flax.linen.fp8_ops.dot_general_with_precision(a, b, DOT),
        lambda a, b: a @ b, (X, A)),
    Rule("jax.nn.logsumexp", jax.nn.logsumexp, lambda x: jnp.log(jnp.exp(x).sum()), (X,)),
    Rule("jax.nn.softmax", jax.nn.softmax,
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), (X,)),
    Rule("jax.nn.silu", jax.nn.silu, lambda x: x / (1 + jnp.exp(-x)), (X,)),
    Rule("jax.nn.gelu", jax.nn.gelu,
        lambda x: x / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), (X,)),
]  # fmt: skip

# What takes the place of an operation of this name.
SWAPS: dict[str, Callable[..., Any]] = {
    "add": jnp.subtract, "add_any": jnp.subtract, "sub": jnp.add, "mul": lambda a, b: a + 0 * b,
    "div": lambda a, b: a * b, "neg": lambda a: a, "exp": jnp.expm1, "log": jnp.log1p,
    "max": jnp.minimum, "min": jnp.maximum, "sin": jnp.cos, "cos": jnp.sin, "tanh": jnp.sin,
    "logistic": jnp.tanh, "sqrt": jnp.square, "select_n": lambda c, a, b: jax.lax.select_n(c, b, a),
}  # fmt: skip


def changed(rule: Rule) -> Iterator[Callable[..., Any]]:
    """Copies of the rule's function with one operation of its pullback changed; at most `CHANGES`,
    spread over the pullback."""
    dy = jnp.cos(1.0 + jnp.arange(float(np.size(y := rule.f(*rule.args))))).reshape(y.shape)
    pull = lambda *args, dy: jax.vjp(rule.f, *args)[1](dy.astype(rule.f(*args).dtype))
    right = pull(*rule.args, dy=dy)
    found = []
    for place in range(200):
        wrong, reached = _with_change(pull, place)(*rule.args, dy=dy)
        if not reached:
            break
        pairs = zip(_floats(wrong), _floats(right), strict=True)
        moved = [np.abs(a - b) for a, b in pairs]
        size = max(np.abs(b).max() for b in _floats(right))
        if max(m.max() for m in moved) > 1e-3 * size:
            found.append(place)
    for place in found[:: max(1, math.ceil(len(found) / CHANGES))]:
        yield _custom(rule.f, lambda *a, dy, place=place: _with_change(pull, place)(*a, dy=dy)[0])


def _floats(tree: Any) -> list[Any]:
    """The leaves that are gradients of numbers: JAX's of integers are of dtype float0."""
    return [np.asarray(a, float) for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.float0]


def _custom(f: Callable[..., Any], pull: Callable[..., Any]) -> Callable[..., Any]:
    copy = jax.custom_vjp(lambda *args: f(*args))
    copy.defvjp(lambda *args: (f(*args), args), lambda args, dy: pull(*args, dy=dy))
    return copy


def _with_change(pull: Callable[..., Any], place: int) -> Callable[..., tuple[Any, bool]]:
    """The pullback with the operation at this place changed, and whether there is one."""

    def run(*args: Any, dy: Any) -> tuple[Any, bool]:
        traced, shapes = jax.make_jaxpr(lambda *a: pull(*a[:-1], dy=a[-1]), return_shape=True)(
            *args, dy
        )
        left = [place]
        results = _evaluate(traced.jaxpr, traced.consts, [*args, dy], left)
        return jax.tree.unflatten(jax.tree.structure(shapes), results), left[0] < 0

    return run


def _evaluate(jaxpr: Any, consts: list[Any], arrays: list[Any], left: list[int]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arrays], strict=True))
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        name, inner = equation.primitive.name, equation.params.get("jaxpr")
        inner = inner or equation.params.get("call_jaxpr")
        if hasattr(inner, "consts") and name not in ("scan", "while"):
            results = _evaluate(inner.jaxpr, inner.consts, operands, left)
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            if name in SWAPS and jnp.issubdtype(results[0].dtype, jnp.floating):
                if left[0] == 0 and (name != "select_n" or len(operands) == 3):
                    results = [SWAPS[name](*operands).astype(results[0].dtype)]
                left[0] -= 1
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _by_fnn(f: Callable[..., Any], rule: Rule) -> bool:
    return verify.check_custom(f, *rule.args, reference=rule.plain).verdict == "pass"


def _by_jax(f: Callable[..., Any], rule: Rule) -> bool:
    check_grads(*_of_floats(f, rule.args), 1, modes=("rev",))
    return True


def _by_jax_float64(f: Callable[..., Any], rule: Rule) -> bool:
    with jax.enable_x64(True):
        return _by_jax(f, rule._replace(args=jax.tree.map(_wide, rule.args)))


def _by_chex(f: Callable[..., Any], rule: Rule) -> bool:
    chex.assert_numerical_grads(*_of_floats(f, rule.args), order=1, modes=("rev",))
    return True


def _wide(a: Any) -> Any:
    return a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _of_floats(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], Any]:
    """f of its floating-point arguments, and these."""
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def of_floats(*given: Any) -> Any:
        at = dict(zip(floats, given, strict=True))
        return f(*[at.get(i, a) for i, a in enumerate(args)])

    return of_floats, tuple(args[i] for i in floats)


CHECKERS = {"fnn": _by_fnn, "jax": _by_jax, "jax float64": _by_jax_float64, "chex": _by_chex}


def run() -> dict[str, Any]:
    """The table, printed, and as a dict."""
    rows: dict[str, Any] = {name: {"refused_wrong": 0, "refused_right": []} for name in CHECKERS}
    wrong = 0
    for rule in RULES:
        copies = list(changed(rule))
        wrong += len(copies)
        for name, check in CHECKERS.items():
            rows[name]["refused_wrong"] += sum(not _passes(check, f, rule) for f in copies)
            if not _passes(check, rule.f, rule):
                rows[name]["refused_right"].append(rule.name)
    print(f"\n{len(RULES)} rules of JAX, optax and Flax, {wrong} with one operation changed\n")
    print("checker      refused wrong   refused right")
    for name, row in rows.items():
        print(
            f"{name:12} {row['refused_wrong']:8} of {wrong}   "
            f"{len(row['refused_right']):3} of {len(RULES)}"
        )
        row |= {"wrong": wrong, "right": len(RULES)}
    return rows


def _passes(check: Callable[..., bool], f: Callable[..., Any], rule: Rule) -> bool:
    try:
        return check(f, rule)
    except Exception:  # a checker that raises does not pass it
        return False
