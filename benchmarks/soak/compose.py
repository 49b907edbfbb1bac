"""Random networks of everything public beside the same functions in NumPy: the same values,
gradients, statistics, second derivatives and training steps? A composition that differs is shrunk
to the smallest one that does.

A network is a composition of `parts`, perhaps behind an embedding, with a head and a loss of
`ends`. `twins` makes both sides, and `checks` says what is compared. `covered` names what is public
and in some composition, `LEFT_OUT` what is not.

Most compositions are traced by JAX and evaluated in NumPy (`interpreted`), for compiling takes
longest of all; one in fifty is compiled by `jax.jit`.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.soak import duals, ends, nestings, parts
from benchmarks.soak.checks import CHECKS, FIRST, Case, Check
from benchmarks.soak.ends import ENDS, HEADS
from benchmarks.soak.interpreted import evaluated
from benchmarks.soak.parts import PARTS, Node, Where
from benchmarks.soak.twins import Composition, D, Numbers, Twin, arrays, flat, network, twin


def compositions(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each random composition is the same function as its twin in NumPy."""
    rng = random.Random(seed)
    counts: dict[str, int] = {"inputs": 0, "differ": 0}
    with little_optimization():
        for _ in range(wanted):
            composition = drawn(rng)
            counts["inputs"] += 1
            for each in (composition.dtype, *composition.checks):
                counts[each] = counts.get(each, 0) + 1
            found = difference(composition)
            if found:
                counts["differ"] += 1
                print("differs:", composition, found, flush=True)
                print("smallest:", *shrunk(composition, found), flush=True)
    return counts


@contextmanager
def little_optimization() -> Iterator[None]:
    """Most time goes into compiling single operations for shapes that no composition had yet."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def drawn(rng: random.Random) -> Composition:
    """A random composition: mostly of depth 1 or 2."""
    dtype = rng.choice(["float64", "float64", "float32", "bfloat16"])
    smooth = dtype == "bfloat16" or rng.random() < 0.4
    where = Where(rng.choice([parts.FEATURES, parts.FEATURES, parts.TOKENS, parts.PIXELS]), D)
    depth = rng.choice([0, 1, 1, 1, 1, 1, 2, 2, 2, 3])
    node = parts.drawn(rng, where, depth, lambda name: PARTS[name].smooth or not smooth)
    node = node if smooth else _wide(node)
    heads = [h for h, of in HEADS.items() if of.axes == where.axes and of.smooth >= smooth]
    head = rng.choice(heads + ["dense"] * 3 * ("dense" in heads))
    loss = rng.choice(
        [
            name
            for name, found in ENDS.items()
            if ends.fits(head, name) and found[0].smooth >= smooth
        ]
    )
    made = Composition(
        node,
        where.axes,
        rng.random() < 0.15,
        head,
        loss,
        rng.randrange(len(ENDS[loss])),
        dtype,
        "plain",
        rng.randrange(10**6),
        (),
    )
    if made.varies:
        mode = rng.choice(["plain", "training", "training", "evaluation"])
        made = made._replace(mode=mode)
    return made._replace(checks=_checks(rng, made))


def _wide(node: Node) -> Node:
    """The composition without bfloat16: rounding to so few bits decides at kinks."""
    setting = "float32" if node.name == "compute_in" else node.setting
    return Node(node.name, setting, tuple(map(_wide, node.inner)))


def _checks(rng: random.Random, composition: Composition) -> tuple[str, ...]:
    """What is compared, beside the values and gradients that always are."""
    found = []
    possible = [name for name, check in CHECKS.items() if check.fits(composition)]
    often = [name for name in possible if CHECKS[name].often]
    seldom = [name for name in possible if not CHECKS[name].often]
    if often:
        found += rng.sample(often, min(len(often), rng.choice([0, 1, 1, 2])))
    if seldom and rng.random() < 0.2:
        found.append(rng.choice(seldom))
    if rng.random() < 0.02:
        found.append("jit")
    return tuple(found)


def difference(composition: Composition) -> str | None:
    """The first thing in which network and twin differ, or an error; None where there is none."""
    try:
        wide = composition.dtype == "float64"
        with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
            return _compared(composition)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compared(composition: Composition) -> str | None:
    net = network(composition)
    numbers = Numbers.of(composition, net)
    case = Case(composition, net, numbers)
    params, x, y = arrays(composition, (numbers.params, numbers.x, numbers.y))
    statistics = None
    if composition.mode == "evaluation":
        measured = evaluated(partial(fnn.statistics, net), params, x)
        statistics = jax.tree.map(jnp.asarray, measured)
    case = case._replace(net=fnn.at(net, numbers.when.key, statistics))
    checks = {"first": FIRST} | {name: CHECKS[name] for name in composition.checks if name != "jit"}
    found = twin(composition, numbers)
    far, compiled = _Far(case, found), "jit" in composition.checks
    for name, check in checks.items():
        ours = check.ours(case)
        got = jax.jit(ours)(params, x, y) if compiled else evaluated(ours, params, x, y)
        if wrong := _of_dtypes(composition, name, got):
            return wrong
        got, expected = flat(got), np.ravel(check.theirs(case, found))
        if got.shape != expected.shape:
            return f"{name}: {got.shape} numbers for {expected.shape}"
        finite = np.isfinite(expected)
        if not finite.all() or not expected.size:
            continue  # a run of both that diverged
        error, limit = np.abs(got - expected).max(), far.of(check, expected)
        if limit < 1e6 * (1 + np.abs(expected).max()) and not error <= limit:
            return f"{name} by {error:.1e}, more than {limit:.1e}"
    return None


def _of_dtypes(composition: Composition, name: str, got: Any) -> str | None:
    """The composition's own, or at least float32: what a statistic is in."""
    for leaf in jax.tree.leaves(got):
        if leaf.dtype != composition.dtype and (name == "first" or leaf.dtype != jnp.float32):
            return f"{name} is {leaf.dtype}"
    return None


class _Far:
    """How far rounding may carry: a multiple of what it does to the twin when that is rounded
    after each operation."""

    def __init__(self, case: Case, found: Twin) -> None:
        self.case, self.found = case, found
        self.rounded: Twin | None = None
        narrow = "bfloat16" in (case.composition.dtype, *_settings(case.composition.node))
        self.eps, self.factor = (2.0**-8, 16.0) if narrow else (2.0**-23, 256.0)
        if "reversible" in case.composition.node.names():
            self.factor *= 4  # it subtracts to get its inputs back

    def of(self, check: Check, expected: np.ndarray) -> float:
        """The largest error that a check may have."""
        scale = 1 + np.abs(expected).max()
        if not self.case.composition.narrow:
            return 1e-9 * scale
        if self.rounded is None:
            with duals.rounded_to(self.case.composition.dtype):
                self.rounded = twin(self.case.composition, self.case.numbers)
        with duals.rounded_to(self.case.composition.dtype):
            rounded = np.ravel(check.theirs(self.case, self.rounded))
        error = np.abs(rounded - expected).max()
        return (
            check.loose * self.factor * (error + self.eps * scale) if np.isfinite(error) else np.inf
        )


def _settings(node: Node) -> set[Any]:
    return {node.setting}.union(*map(_settings, node.inner))


LEFT_OUT = {
    "Layer Loss Optimizer Varying Error DivergedError Progress per_example.NoiseScale"
    " curvature.Kronecker curvature.Spectrum curvature.KFACState": "types",
    "Direct Masked Outer Rows Sum": "what layers state, and every statistic reads",
    "from_equinox from_flax from_torch to_torch statistics_from_torch from_optax to_optax": (
        "of other libraries: tests/adapters"
    ),
    "fit make_epoch make_train": "loops around a step, in an order that they draw",
    "layer_outputs summary by_name gradients.check": "they compute nothing",
    "per_example.add_noise": "noise alone; `noisy` adds it",
    "parallel.copy_to parallel.sum_over parallel.sharded parallel.column_dense"
    " parallel.row_dense": ("parts of `parallel.mlp`"),
    "parallel.ShardedExamples parallel.create parallel.shardings parallel.specs": (
        "where arrays lie: `sharded` trains on them"
    ),
    "checkpoint data estimators export initializers runs schedules targets verify": (
        "modules that make no function of a network"
    ),
}
"""Public names that are in no composition, and why."""


def covered() -> set[str]:
    """The public names that are in some composition."""
    found = {"embedding", *ENDS, *nestings.COVERS.split()}
    for each in (*PARTS.values(), *HEADS.values(), *CHECKS.values(), FIRST):
        found |= set(each.covers.split())
    return found


def shrunk(composition: Composition, found: str) -> tuple[Composition, str]:
    """The smallest composition in reach that differs still, and in what."""
    for each in smaller(composition):
        still = difference(each)
        if still and still.split(":")[0].split(" by ")[0] == found.split(":")[0].split(" by ")[0]:
            return shrunk(each, still)
    return composition, found


def smaller(composition: Composition) -> list[Composition]:
    """Those one step smaller: with fewer checks, or a smaller network."""
    checks = composition.checks
    found = [composition._replace(checks=checks[:i] + checks[i + 1 :]) for i in range(len(checks))]
    if composition.embedded:
        found.append(composition._replace(embedded=False))
    return found + [composition._replace(node=node) for node in _smaller_nodes(composition.node)]


def _smaller_nodes(node: Node) -> list[Node]:
    """A part in the whole's place, one part fewer, or a smaller part."""
    found = [*node.inner] if node.name != "reversible" else []
    several = node.name in ("serial", "add", "concatenate") and len(node.inner) > 1
    for i, part in enumerate(node.inner):
        inner = (*node.inner[:i], *node.inner[i + 1 :])
        found += [node._replace(inner=inner)] if several else []
        for smaller in _smaller_nodes(part):
            found.append(node._replace(inner=(*node.inner[:i], smaller, *node.inner[i + 1 :])))
    if node.name in ("repeat", "reversible") and node.setting > 1:
        found.append(node._replace(setting=1))
    return found
