"""Per-example gradients and curvature: what each costs beside a plain gradient.

Peers go through `jax.vmap(jax.grad)` and are jitted, in three ways: every example's gradient
held, as a function that takes them for its input needs; all in one program, where XLA may fuse
away what it can; and some at a time (the number is in the name), which keeps only the result.
Ratios are medians of the rounds' own ratios to `value_and_grad` on the same batch. Temporary
memory is the compiled program's, beside its arguments and results; for the held gradients they
are counted too. (Squares and clipped sums of 16 at a time are worse on CPU than one at a time:
XLA makes loops of them, not products.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fnn
from benchmarks.report import table
from benchmarks.timing import alternate, ratio
from fnn import curvature, per_example

SIZES = (784, 512, 256, 10)
PLAIN = "value_and_grad"
HELD = "norms, jax.vmap(grad), held"
BESIDE = "norms, jax.vmap(grad)"


def instruments(network: fnn.Layer, loss: fnn.Loss) -> dict[str, Callable[..., Any]]:
    """fnn's own, f(params, x, y) by name."""
    gauss_newton = curvature.gauss_newton_vector_product(network, loss)
    return {
        PLAIN: fnn.value_and_grad(network, loss),
        "squared_norms": per_example.squared_norms(network, loss),
        "clipped_value_and_grad": per_example.clipped_value_and_grad(network, loss, 1.0),
        "second_moment": per_example.second_moment(network, loss),
        "gram": per_example.gram(network, loss),
        "gradient_noise_scale": per_example.gradient_noise_scale(network, loss),
        "ggn_diagonal": curvature.ggn_diagonal(network, loss),
        "kronecker_factors": curvature.kronecker_factors(network, loss),
        "gauss_newton_vector_product": lambda params, x, y: gauss_newton(params, x, y, params),
    }


def peers(objective: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The same by `jax.grad`, f(params, x, y) by name."""
    each = gradients(objective)

    def hessian_vector_product(params, x, y):
        return jax.jvp(lambda p: jax.grad(objective)(p, x, y), (params,), (params,))[1]

    def some_norms(params, x, y):
        return jax.lax.map(lambda some: norms(each(params, *some)), chunks(16, x, y)).ravel()

    def summed(of_grads, size):
        """The sum of of_grads(gradients) over the examples, `size` of them at a time."""

        def f(params, x, y):
            def add(sums, some):
                return jax.tree.map(jnp.add, sums, of_grads(each(params, *some))), None

            return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks(size, x, y))[0]

        return f

    return {
        "jax.value_and_grad": jax.value_and_grad(objective),
        "Hessian-vector product, jax.jvp(grad)": hessian_vector_product,
        BESIDE: lambda params, x, y: norms(each(params, x, y)),
        "norms, jax.vmap(grad), 16": some_norms,
        "clipped, jax.vmap(grad), 16": summed(clipped, 16),
        "clipped, jax.grad, 1": summed(clipped, 1),
        "second moment, jax.grad, 1": summed(squares, 1),
    }


def gradients(objective: Callable[..., Any]) -> Callable[..., Any]:
    """f(params, x, y) -> each example's gradient, whole."""

    def one(params, x, y):
        return objective(params, x[None], y[None])

    return jax.vmap(jax.grad(one), (None, 0, 0))


def norms(grads: Any) -> jax.Array:
    """||g_n||^2 of gradients that are held."""
    return sum((g * g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(grads))


def clipped(grads: Any) -> Any:
    """The sum of gradients that are held, each clipped to norm 1."""
    scale = 1 / jnp.sqrt(jnp.maximum(norms(grads), 1))
    return jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), grads)


def squares(grads: Any) -> Any:
    """The sum of the squares of gradients that are held."""
    return jax.tree.map(lambda g: (g * g).sum(0), grads)


def chunks(size: int, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and y, `size` examples at a time along the first axis."""
    return x.reshape(-1, size, x.shape[-1]), y.reshape(-1, size)


def run(quick: bool) -> dict[str, Any]:
    """Time all of them and print the table: {"network": ..., "batches": {batch: {name: ...}}}."""
    network, loss = fnn.mlp(SIZES), fnn.softmax_cross_entropy
    objective, params = fnn.objective(network, loss), network.init(jax.random.key(0))
    results = {}
    for batch in (128,) if quick else (128, 512):
        x = jax.random.normal(jax.random.key(1), (batch, SIZES[0]))
        y = jax.random.randint(jax.random.key(2), (batch,), 0, SIZES[-1])
        args = (params, x, y)
        programs = {
            name: jax.jit(f).lower(*args).compile()
            for name, f in (instruments(network, loss) | peers(objective)).items()
        }
        memory = {name: temporary_bytes(program) for name, program in programs.items()}
        hold = jax.jit(gradients(objective)).lower(*args).compile()
        of_held = jax.jit(norms).lower(hold(*args)).compile()
        programs[HELD] = lambda *args, hold=hold, of_held=of_held: of_held(hold(*args))
        held = hold.memory_analysis().output_size_in_bytes
        memory[HELD] = temporary_bytes(hold) + temporary_bytes(of_held) + held

        def call(program, args=args):
            return lambda: program(*args)

        # What follows gigabytes of gradients finds cold caches: not the one all are compared with.
        programs[BESIDE] = programs.pop(BESIDE)
        turns = {name: call(program) for name, program in programs.items()}
        samples = alternate(turns, rounds=5 if quick else 25)
        results[batch] = {
            name: {
                "seconds": samples[name].summary(),
                "times_a_gradient": ratio(samples[name], samples[PLAIN]).summary(),
                "temporary_bytes": memory[name],
            }
            for name in programs
        }
        rows = [
            [
                name,
                f"{r['seconds']['median'] * 1e3:.2f}",
                f"{r['times_a_gradient']['median']:.2f}",
                f"{r['times_a_gradient']['quartile_1']:.2f}-"
                f"{r['times_a_gradient']['quartile_3']:.2f}",
                f"{r['temporary_bytes'] / 1e6:.2f}",
            ]
            for name, r in results[batch].items()
        ]
        print(f"\n{'-'.join(map(str, SIZES))}, batch {batch}, {jax.default_backend()}")
        headings = ["", "ms", "times a gradient", "quartiles", "temporary MB"]
        print(table(headings, rows))
    return {"network": SIZES, "batches": results}


def temporary_bytes(program: Any) -> int:
    """What a compiled program needs beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    run(quick=False)
