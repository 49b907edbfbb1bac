"""Per-example statistics beside the libraries made for them, on the same networks and batches.

    jax-privacy   `clipped_grad`, whole and in microbatches of 8
    Opacus        ghost clipping: the clipped gradient in two backward passes, no gradient held
    BackPACK      per-example norms, sum of squared gradients, diagonal of the Gauss-Newton matrix
    kfac-jax      Kronecker factors of the Gauss-Newton matrix, over all columns of the Hessian root

Every library computes on the same parameters, and its result is compared with ours before it is
timed. Times are medians of the rounds' ratios to ours, in alternating calls. A library that is not
installed is left out. Only what compiles with XLA states its memory. kfac-jax 0.0.8 traces with
jax up to 0.8: with a newer one it is left out too.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.report import table
from benchmarks.timing import alternate, ratio
from fnn import curvature, per_example

BATCH, CLIP = 128, 1.0


def mlp() -> tuple[fnn.Layer, tuple[int, ...]]:
    """784-512-256-10, and the shape of an input."""
    return fnn.mlp((784, 512, 256, 10)), (784,)


def cnn() -> tuple[fnn.Layer, tuple[int, ...]]:
    """Two convolutions and a dense layer on images of 14 x 14."""
    conv = partial(fnn.conv2d, padding="SAME")
    network = fnn.serial(
        conv(1, 16), fnn.relu, fnn.mean_pool((2, 2)),
        conv(16, 32), fnn.relu, fnn.flatten(3), fnn.dense(7 * 7 * 32, 10),
    )  # fmt: skip
    return network, (14, 14, 1)


def run(quick: bool) -> dict:
    """Both networks, every library that is there."""
    result = {name: compare(*make(), 3 if quick else 12) for name, make in
              (("784-512-256-10", mlp), ("two convolutions", cnn))}  # fmt: skip
    for name, rows in result.items():
        print(f"\n{name}, batch {BATCH}")
        headings = ["", "us", "times ours", "temporary MB", "difference"]
        print(table(headings, [[who, *row.values()] for who, row in rows.items()]))
    return {"networks": result}


def compare(network: fnn.Layer, shape: tuple[int, ...], rounds: int) -> dict[str, dict]:
    """Microseconds, ratio to ours, memory and relative difference from ours, by name."""
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (BATCH, *shape))
    y = jax.random.randint(jax.random.key(2), (BATCH,), 0, 10)
    loss = fnn.softmax_cross_entropy
    clipped = per_example.clipped_value_and_grad(network, loss, CLIP)
    ours = {
        "clipped": lambda *a: clipped(*a)[1],
        "norms": per_example.squared_norms(network, loss),
        "second moment": per_example.second_moment(network, loss),
        "GGN diagonal": curvature.ggn_diagonal(network, loss),
    }
    if x.ndim == 2:  # a convolution has no Kronecker factors
        ours["Kronecker"] = lambda *a: dense_only(curvature.kronecker_factors(network, loss)(*a))
    programs = {name: jax.jit(f).lower(params, x, y).compile() for name, f in ours.items()}
    calls: dict[str, Callable] = {
        f"{name}, fnn": partial(program, params, x, y) for name, program in programs.items()
    }
    memory = {f"{name}, fnn": temporary(program) for name, program in programs.items()}
    in_microbatches = jax.jit(partial(microbatches, clipped, 8)).lower(params, x, y).compile()
    calls["clipped, fnn, 8 at a time"] = partial(in_microbatches, params, x, y)
    memory["clipped, fnn, 8 at a time"] = temporary(in_microbatches)
    found = {name: call() for name, call in calls.items()}
    if "Kronecker" in ours and importlib.util.find_spec("kfac_jax") and jax.__version__ < "0.9":
        program = jax.jit(with_kfac_jax(params, x, y)).lower(params, x, y).compile()
        calls["Kronecker, kfac-jax"] = partial(program, params, x, y)
        memory["Kronecker, kfac-jax"] = temporary(program)
    if importlib.util.find_spec("jax_privacy"):
        for size in (None, 8):
            name = "clipped, jax-privacy" + (f", {size} at a time" if size else "")
            program = jax.jit(with_jax_privacy(network, size)).lower(params, x, y).compile()
            calls[name] = partial(program, params, x, y)
            memory[name] = temporary(program)
    torch_calls = with_torch(network, params, x, y)
    calls |= torch_calls
    for name in calls:
        found[name] = calls[name]()
    samples = alternate(calls, rounds=rounds, rest_after=tuple(torch_calls))
    rows = {}
    for name in calls:
        what = name.split(",")[0]
        mine = samples[f"{what}, fnn"]
        rows[name] = {
            "us": 1e6 * samples[name].median,
            "ratio": ratio(samples[name], mine).median,
            "memory": memory.get(name, float("nan")),
            "difference": difference(what, found[name], found[f"{what}, fnn"]),
        }
    return rows


def difference(what: str, got: Any, expected: Any) -> float:
    """The relative difference of the norms over all entries, whatever the trees' forms."""
    a, b = (
        np.sqrt(sum(float(np.square(np.asarray(leaf, np.float64)).sum())
                    for leaf in jax.tree.leaves(tree)))
        for tree in (got, expected)
    )  # fmt: skip
    return abs(a - b) / b


def temporary(program: Any) -> float:
    """Megabytes beside arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 1e6


def microbatches(f: Callable, size: int, params: Any, x: Any, y: Any) -> Any:
    """The mean of f's gradients over microbatches of `size`, one after another."""
    parts = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (x, y))
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, f(params, *part)[1]), None)
    sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return jax.tree.map(lambda a: a * size / len(x), sums)


def dense_only(blocks: Any) -> list[Any]:
    """A and S of each dense layer."""
    is_block = lambda node: isinstance(node, curvature.Kronecker)
    return [b for b in jax.tree.leaves(blocks, is_leaf=is_block) if is_block(b)]


def with_kfac_jax(params: Any, x: Any, y: Any) -> Callable[..., Any]:
    """A and S by `BlockDiagonalCurvature`, every dense layer registered by hand."""
    import kfac_jax

    def as_theirs(params: Any) -> Any:
        return [{"w": p["W"].T, "b": p["b"]} for p in params if p]

    def objective(params: Any, batch: Any) -> Any:
        a, labels = batch
        for p in params:
            z = kfac_jax.register_dense(a @ p["w"] + p["b"], a, p["w"], p["b"])
            a = jax.nn.relu(z)
        kfac_jax.register_softmax_cross_entropy_loss(z, targets=labels)
        return -jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1).mean()

    estimator = kfac_jax.BlockDiagonalCurvature(objective, params_index=0)
    key = jax.random.key(3)
    state = estimator.init(
        rng=key, func_args=(as_theirs(params), (x, y)), exact_powers_to_cache=None,
        approx_powers_to_cache=None, cache_eigenvalues=False,
    )  # fmt: skip

    def factors(params: Any, x: Any, y: Any) -> Any:
        new = estimator.update_curvature_matrix_estimate(
            state=state, ema_old=0.0, ema_new=1.0, identity_weight=0.0, batch_size=BATCH, rng=key,
            func_args=(as_theirs(params), (x, y)), estimation_mode="ggn_exact",
        )  # fmt: skip
        return [[moving.value for moving in block.factors] for block in new.blocks_states]

    return factors


def with_jax_privacy(network: fnn.Layer, size: int | None) -> Callable[..., Any]:
    """`clipped_grad`, divided by the batch size."""
    from jax_privacy import clipping

    return clipping.clipped_grad(
        fnn.objective(network, fnn.softmax_cross_entropy),
        l2_clip_norm=CLIP, normalize_by=BATCH, batch_argnums=(1, 2), microbatch_size=size,
    )  # fmt: skip


def with_torch(network: fnn.Layer, params: Any, x: Any, y: Any) -> dict[str, Callable]:
    """The libraries on PyTorch, on the same parameters."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    inputs = torch.tensor(np.asarray(x if x.ndim == 2 else jnp.moveaxis(x, -1, 1)))
    labels = torch.tensor(np.asarray(y)).long()
    calls: dict[str, Callable] = {}
    if importlib.util.find_spec("backpack"):
        import backpack.extensions as ext
        from backpack import backpack, extend

        model = extend(translated(params))

        def backward(reduction: str, extension: Any, read: Callable) -> Any:
            cost = extend(torch.nn.CrossEntropyLoss(reduction=reduction))
            model.zero_grad()
            with backpack(extension):
                cost(model(inputs), labels).backward()
            return [read(p) for p in model.parameters()]

        calls["norms, BackPACK"] = lambda: sum(
            backward("sum", ext.BatchL2Grad(), lambda p: p.batch_l2)
        ).numpy()
        calls["second moment, BackPACK"] = lambda: backward(
            "sum", ext.SumGradSquared(), lambda p: p.sum_grad_squared.numpy() / BATCH
        )
        calls["GGN diagonal, BackPACK"] = lambda: backward(
            "mean", ext.DiagGGNExact(), lambda p: p.diag_ggn_exact.numpy()
        )
    if importlib.util.find_spec("opacus"):
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        ghost = GradSampleModuleFastGradientClipping(
            translated(params), max_grad_norm=CLIP, use_ghost_clipping=True,
            loss_reduction="mean",
        )  # fmt: skip

        class Clipped:
            """The part of Opacus' optimizer that its loss asks for."""

            loss_reduction = "mean"

            def zero_grad(self) -> None:
                ghost.zero_grad()

        cost = DPLossFastGradientClipping(ghost, Clipped(), torch.nn.CrossEntropyLoss(), "mean")

        def clip() -> Any:
            ghost.zero_grad()
            cost(ghost(inputs), labels).backward()
            return [p.grad.numpy() / BATCH for p in ghost.parameters()]  # a sum, as it is used

        calls["clipped, Opacus ghost"] = clip
    return calls


def translated(params: Any) -> Any:
    """The network in PyTorch, images with channels first."""
    import torch

    def weights(layer: Any, p: Any, W: Any) -> Any:
        layer.weight.data = torch.tensor(np.array(W))
        layer.bias.data = torch.tensor(np.array(p["b"]))
        return layer

    layers: list[Any] = []
    dense = [p for p in params if p and p["W"].ndim == 2]
    convolutions = [p for p in params if p and p["W"].ndim == 4]
    for i, p in enumerate(convolutions):
        c_out, _, _, c_in = p["W"].shape
        conv = torch.nn.Conv2d(c_in, c_out, 3, padding=1)
        layers += [weights(conv, p, jnp.transpose(p["W"], (0, 3, 1, 2))), torch.nn.ReLU()]
        if i == 0:
            layers.append(torch.nn.AvgPool2d(2))
    if convolutions:
        (p,) = dense
        images = p["W"].reshape(10, 7, 7, 32)
        flat = jnp.transpose(images, (0, 3, 1, 2)).reshape(10, -1)
        layers += [torch.nn.Flatten(), weights(torch.nn.Linear(7 * 7 * 32, 10), p, flat)]
        return torch.nn.Sequential(*layers)
    for p in dense:
        layers += [weights(torch.nn.Linear(*p["W"].shape[::-1]), p, p["W"]), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])
