"""The judge against its peers, on the same planted bugs: `python -m benchmarks.verify`.

The bugs are those of `tests/verify/bugs.py`, planted into a 784-64-64-10 relu network with softmax
cross-entropy and 128 examples, the loss scaled by 1e-4, 1 and 1e4. Each checker is called as its
documentation has it, on the same gradient:

    fnn             verify.check_gradients
    jax             jax.test_util.check_grads on a custom_vjp with that gradient, float32
    jax float64     the same in float64, for which its tolerances are tighter
    chex            chex.assert_numerical_grads on the same function, order 1
    torch           torch.autograd.gradcheck, fast mode, on a torch.autograd.Function that hands
                    out that gradient; float64, as it asks for

A bug is caught where the checker does not pass it. A false alarm is a correct gradient refused, in
one of the seeds. Bugs are planted where one pre-activation is exactly 0; in the seeds none is.

Seconds are medians of one check: `first` is a fresh process's; `a new bug` that of a gradient not
met before; `again` the same gradient once more, the checkers by turns.

Below these stands `benchmarks.rules`: rules out of JAX, optax and Flax, and the same with one
operation changed.

torch falls back on its slow mode for the message of a refusal, two evaluations for each of 55,000
parameters: its row is of a 6-5-5-4 network, seconds included.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from benchmarks import rules

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verify"))

from bugs import GRADIENT_BUGS, SETTINGS, Setting, Steps, _cross_entropy, _cross_entropy_start

from fnn import verify


def _network(*sizes: int) -> Setting:
    relu = SETTINGS[1]
    return Setting(
        "relu, cross-entropy", sizes, relu.activation, relu.slope,
        _cross_entropy, _cross_entropy_start, 0.0,
    )  # fmt: skip


NETWORK = _network(784, 64, 64, 10)
SMALL = _network(6, 5, 5, 4)
BUGS = [bug for bug in GRADIENT_BUGS if bug.where in NETWORK.name]
SCALES = (1e-4, 1.0, 1e4)
Check = Callable[[Callable, Any, Any, Any, float], bool]
"""check(value_and_grad, params, x, y, scale) -> whether the gradient is passed."""


def _problem(seed: int, network: Setting = NETWORK) -> tuple[Any, jax.Array, jax.Array]:
    """He-normal weights and noise: nothing planted, nothing at a kink."""
    keys = jax.random.split(jax.random.key(seed), 8)
    params = [
        {
            "W": jax.random.normal(keys[2 * i], (d_out, d_in)) * np.sqrt(2 / d_in),
            "b": 0.1 * jax.random.normal(keys[2 * i + 1], (d_out,)),
        }
        for i, (d_in, d_out) in enumerate(zip(network.sizes, network.sizes[1:], strict=False))
    ]
    x = jax.random.normal(keys[6], (128, network.sizes[0]))
    return params, x, jax.random.randint(keys[7], (128,), 0, network.sizes[-1])


def _at_a_kink(params, x, y):
    """An example of zeros and a unit without bias: one pre-activation at relu's kink."""
    params = [params[0] | {"b": params[0]["b"].at[1].set(0)}, *params[1:]]
    return params, x.at[2].set(0), y


def by_fnn(f, params, x, y, scale):
    """This library's."""
    report = verify.check_gradients(f, NETWORK.objective, params, x, y, jnp.asarray(scale))
    return report.verdict == "pass"


def _custom(f, x, y, scale, unravel=lambda flat: flat, ravel=lambda tree: tree):
    """The objective whose derivative, for autodiff, is the gradient under test."""

    @jax.custom_vjp
    def g(params):
        return NETWORK.objective(unravel(params), x, y, jnp.asarray(scale, x.dtype))

    def forward(params):
        value, grads = f(unravel(params), x, y, jnp.asarray(scale, x.dtype))
        return value, ravel(grads)

    g.defvjp(forward, lambda grads, ct: (jax.tree.map(lambda a: a * ct, grads),))
    return g


def by_jax(f, params, x, y, scale):
    """JAX's own, in float32."""
    return _passes(lambda: check_grads(_custom(f, x, y, scale), (params,), 1, modes=("rev",)))


def by_jax_float64(f, params, x, y, scale):
    """JAX's own, in float64."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x))
        return by_jax(f, params, x, y, scale)


def by_chex(f, params, x, y, scale):
    """Its tolerance grows with the first argument's size, so it gets the parameters flat."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    g = _custom(f, x, y, scale, unravel, lambda tree: jax.flatten_util.ravel_pytree(tree)[0])
    return _passes(lambda: chex.assert_numerical_grads(g, (flat,), order=1, modes=("rev",)))


def by_torch(f, params, x, y, scale):
    """torch's, on the same numbers."""
    import torch

    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        gradient = lambda flat: f(unravel(flat), x, y, jnp.asarray(scale, x.dtype))

        class Loss(torch.autograd.Function):
            @staticmethod
            def forward(ctx, theta):
                value, grads = gradient(jnp.asarray(theta.detach().numpy()))
                chex.assert_trees_all_equal_shapes(grads, params)  # torch would, if not flat
                leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(grads)]
                ctx.save_for_backward(torch.from_numpy(np.concatenate(leaves).astype(float)))
                return torch.tensor(float(value), dtype=torch.float64)

            @staticmethod
            def backward(ctx, ct):
                return ctx.saved_tensors[0] * ct

        theta = torch.tensor(np.asarray(flat), requires_grad=True)
        return _passes(lambda: torch.autograd.gradcheck(Loss.apply, (theta,), fast_mode=True))


def _passes(check: Callable) -> bool:
    """Whether a checker that raises is content; what can't even run is not passed either."""
    try:
        check()
    except Exception:
        return False
    return True


CHECKERS: dict[str, Check] = {
    "fnn": by_fnn,
    "jax": by_jax,
    "jax float64": by_jax_float64,
    "chex": by_chex,
    "torch": by_torch,
}


def _network_of(name: str) -> Setting:
    return SMALL if name == "torch" else NETWORK


def _first(name: str) -> float:
    """Seconds of a fresh process's first check, imports and data apart."""
    program = (
        "import jax, time; from benchmarks import verify as b; "
        f"n = b._network_of({name!r}); p = b._problem(0, n); "
        "jax.block_until_ready(p); "
        "f = n.value_and_grad(b.Steps()); t = time.perf_counter(); "
        f"b.CHECKERS[{name!r}](f, *p, 1.0); print(time.perf_counter() - t)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


def run(quick: bool = False) -> dict[str, Any]:
    """The table, printed, and as a dict. quick: fewer seeds and repetitions."""
    seeds, repetitions = (5, 5) if quick else (50, 20)
    try:
        import torch  # noqa: F401
    except ImportError:
        names = [name for name in CHECKERS if name != "torch"]
    else:
        names = list(CHECKERS)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        check, network, took = CHECKERS[name], _network_of(name), []
        right, planted = network.value_and_grad(Steps()), _at_a_kink(*_problem(0, network))
        missed: dict[float, list[str]] = {scale: [] for scale in SCALES}
        for bug in BUGS:
            f = network.value_and_grad(bug.steps)
            start = time.perf_counter()
            for scale in SCALES:
                if check(f, *planted, scale):
                    missed[scale].append(bug.kind)
            took.append((time.perf_counter() - start) / len(SCALES))
        print(f"{name}: missed {missed}", file=sys.stderr, flush=True)
        alarms = sum(not check(right, *_problem(seed, network), 1.0) for seed in range(seeds))
        rows[name] = {
            "bugs": len(BUGS),
            "caught": {f"{scale:g}": len(BUGS) - len(missed[scale]) for scale in SCALES},
            "missed": {f"{scale:g}": missed[scale] for scale in SCALES},
            "false_alarms": alarms,
            "seeds": seeds,
            "seconds_a_bug": float(np.median(took)),
            "seconds_first": float(np.median([_first(name) for _ in range(1 if quick else 5)])),
        }
    again: dict[str, list[float]] = {name: [] for name in names}
    honest = {}
    for name in names:
        network = _network_of(name)
        honest[name] = (network.value_and_grad(Steps()), *_problem(0, network))
    for _ in range(repetitions):
        for name in names:
            time.sleep(0.3)  # worker threads of the one before spin for a while
            start = time.perf_counter()
            CHECKERS[name](*honest[name], 1.0)
            again[name].append(time.perf_counter() - start)
    for name in names:
        rows[name]["seconds_again"] = float(np.median(again[name]))
    print(f"{len(BUGS)} bugs at each scale of the loss, {seeds} seeds of a correct gradient\n")
    print("                 caught at scale        false        seconds")
    print("checker       1e-4      1    1e4       alarms     first  a new bug    again")
    for name, row in rows.items():
        caught = "".join(f"{n:7}" for n in row["caught"].values())
        print(
            f"{name:11}{caught}  {row['false_alarms']:6} of {seeds:<3}"
            f"{row['seconds_first']:8.2f}{row['seconds_a_bug']:11.3f}{row['seconds_again']:9.3f}"
        )
    return rows | {"rules": rules.run()}


if __name__ == "__main__":
    result = run(quick="--quick" in sys.argv)
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/verify.json").write_text(json.dumps(result, indent=2) + "\n")
