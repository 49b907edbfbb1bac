"""Runs of shuffled minibatch Adam: fnn and its peers, in turn, in one process.

All train the same multi-layer perceptron (relu, softmax cross-entropy) in float32 on the
same data with Adam at its published settings and a learning rate of 1e-3, in a fresh random
order each epoch, the smaller last batch included, with each library's default threads.
Data lie where the library wants them before the clock starts. Each contestant is what a
good user of the library writes: with fnn, a run of some epochs is one program. So is it for
the scan with optax, the strongest known way to train such a network with JAX. The others
call something once a step, or once an epoch.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.data import CASES, Case, clusters
from benchmarks.report import table
from benchmarks.timing import alternate, ratio

RATE, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8
Run = Callable[[], Any]
"""Trains for the case's number of epochs, and returns the mean loss over the last."""


def with_fnn(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """The library as it is."""
    network, optimizer = fnn.mlp(case.sizes), fnn.adam(RATE)
    epoch = fnn.make_epoch(network, fnn.softmax_cross_entropy, optimizer, case.batch)
    state = optimizer.init(network.init(jax.random.key(0)))
    return _one_program(case, epoch, state, x, y)


def _one_program(case: Case, epoch: Callable, state: Any, x: np.ndarray, y: np.ndarray) -> Run:
    """Epochs of epoch(state, (x, y), key) -> (state, loss), as one scan."""
    data, key = (jnp.asarray(x), jnp.asarray(y)), jax.random.key(1)

    @partial(jax.jit, donate_argnums=0)
    def advance(state, key, data):
        keys = jax.random.split(key, case.epochs + 1)
        state, losses = jax.lax.scan(lambda s, k: epoch(s, data, k), state, keys[1:])
        return state, keys[0], losses[-1]

    def run():
        nonlocal state, key
        state, key, loss = advance(state, key, data)
        return loss

    return run


def with_optax_scan(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """Autodiff and optax, the epoch one scan: the strongest peer."""
    state, epoch = optax_epoch(case, RATE, jax.random.key(0))
    return _one_program(case, epoch, state, x, y)


def _epoch_by_epoch(case: Case, epoch: Callable[[], Any]) -> Run:
    """For those who call something in each epoch."""

    def run():
        return [epoch() for _ in range(case.epochs)][-1]

    return run


def optax_epoch(case: Case, rate: Any, key: jax.Array) -> tuple[Any, Callable]:
    """A fresh state, and epoch(state, (x, y), key) -> (state, loss) as a scan, with optax."""
    import optax

    optimizer = optax.adam(rate, B1, B2, EPS)
    params = _glorot(case.sizes, key)

    def objective(params, x, y):
        *hidden, last = params
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b)
        logits = x @ last[0] + last[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def epoch(state, data, key):
        n = case.examples
        full = n - n % case.batch
        order = jax.random.permutation(key, n)

        def step(state, rows):
            params, slots = state
            loss, grads = jax.value_and_grad(objective)(params, data[0][rows], data[1][rows])
            updates, slots = optimizer.update(grads, slots)
            return (optax.apply_updates(params, updates), slots), loss * len(rows)

        state, losses = jax.lax.scan(step, state, order[:full].reshape(-1, case.batch))
        total = losses.sum()
        if full < n:
            state, last = step(state, order[full:])
            total += last
        return state, total / n

    return (params, optimizer.init(params)), epoch


def with_equinox(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """Equinox and optax, one compiled call a step."""
    import equinox as eqx
    import optax

    hidden = case.sizes[1:-1]
    keys = jax.random.split(jax.random.key(0), len(case.sizes))
    model = eqx.nn.Sequential(
        [
            part
            for i, (d_in, d_out) in enumerate(itertools.pairwise(case.sizes))
            for part in (
                [eqx.nn.Linear(d_in, d_out, key=keys[i]), eqx.nn.Lambda(jax.nn.relu)]
                if i < len(hidden)
                else [eqx.nn.Linear(d_in, d_out, key=keys[i])]
            )
        ]
    )
    params, static = eqx.partition(model, eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return _loop_of_steps(case, x, y, params, apply, optax.adam(RATE))


def with_flax(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """Flax and optax, one compiled call a step."""
    import optax
    from flax import linen

    layers: list[Any] = []
    for width in case.sizes[1:-1]:
        layers += [linen.Dense(width), linen.relu]
    model = linen.Sequential([*layers, linen.Dense(case.sizes[-1])])
    params = model.init(jax.random.key(0), x[:1])
    return _loop_of_steps(case, x, y, params, model.apply, optax.adam(RATE))


def _loop_of_steps(case, x, y, params, apply, optimizer) -> Run:
    import optax

    data, key = (jnp.asarray(x), jnp.asarray(y)), jax.random.key(1)
    state = params, optimizer.init(params)
    shuffle = jax.jit(jax.random.permutation, static_argnums=1)

    def objective(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()

    def step(params, slots, total, data, order, start, size):
        rows = jax.lax.dynamic_slice_in_dim(order, start, size)
        loss, grads = jax.value_and_grad(objective)(params, data[0][rows], data[1][rows])
        updates, slots = optimizer.update(grads, slots)
        return optax.apply_updates(params, updates), slots, total + loss * size

    step = jax.jit(step, static_argnames="size", donate_argnums=(0, 1, 2))

    def epoch():
        nonlocal state, key
        key, shuffle_key = jax.random.split(key)
        order = shuffle(shuffle_key, case.examples)
        total = jnp.zeros(())
        for start in range(0, case.examples, case.batch):
            size = min(case.batch, case.examples - start)
            *state, total = step(*state, total, data, order, start, size=size)
        return total / case.examples

    return _epoch_by_epoch(case, epoch)


def with_torch(
    case: Case, x: np.ndarray, y: np.ndarray, *, fused: bool = False, compiled: bool = False
) -> Run:
    """PyTorch, eager, as in its tutorials; or its fused Adam; or through torch.compile too."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for d_in, d_out in itertools.pairwise(case.sizes):
        layers += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), RATE, (B1, B2), EPS, fused=fused)
    loss_of = torch.nn.CrossEntropyLoss()
    xs, ys = torch.from_numpy(x), torch.from_numpy(y).long()

    def forward(x, y):
        return loss_of(model(x), y)

    if compiled:
        forward = torch.compile(forward)

    def epoch():
        order = torch.randperm(case.examples)
        total = torch.zeros(())
        for rows in order.split(case.batch):
            optimizer.zero_grad()
            loss = forward(xs[rows], ys[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        return total.item() / case.examples

    return _epoch_by_epoch(case, epoch)


def with_sklearn(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """scikit-learn: partial_fit is one epoch."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        case.sizes[1:-1],
        batch_size=case.batch,
        learning_rate_init=RATE,
        beta_1=B1,
        beta_2=B2,
        epsilon=EPS,
        alpha=0.0,
        random_state=0,
    )

    def epoch():
        return model.partial_fit(x, y, classes=range(case.sizes[-1])).loss_

    return _epoch_by_epoch(case, epoch)


def with_numpy(case: Case, x: np.ndarray, y: np.ndarray) -> Run:
    """A plain loop: the equations of the textbooks, in place where that is easy."""
    rng = np.random.default_rng(0)
    params = [np.array(leaf) for layer in _glorot(case.sizes, jax.random.key(0)) for leaf in layer]
    m, v = ([np.zeros_like(p) for p in params] for _ in range(2))
    t = 0

    def step(x, y):
        nonlocal t
        t += 1
        activations = [x]
        for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            activations.append(np.maximum(activations[-1] @ w + b, 0))
        logits = activations[-1] @ params[-2] + params[-1]
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        rows = np.arange(len(y))
        loss = -log_p[rows, y].sum()
        delta = np.exp(log_p)
        delta[rows, y] -= 1
        delta /= np.float32(len(y))
        grads = []
        for layer in range(len(activations) - 1, -1, -1):
            grads += [delta.sum(0), activations[layer].T @ delta]
            if layer:
                delta = (delta @ params[2 * layer].T) * (activations[layer] > 0)
        rate = np.float32(RATE * math.sqrt(1 - B2**t) / (1 - B1**t))
        eps = np.float32(EPS * math.sqrt(1 - B2**t))
        for p, g, first, second in zip(params, reversed(grads), m, v, strict=True):
            first *= np.float32(B1)
            first += np.float32(1 - B1) * g
            second *= np.float32(B2)
            second += np.float32(1 - B2) * g * g
            p -= rate * first / (np.sqrt(second) + eps)
        return loss

    def epoch():
        order = rng.permutation(case.examples)
        batches = np.split(order, range(case.batch, case.examples, case.batch))
        return sum(step(x[rows], y[rows]) for rows in batches) / case.examples

    return _epoch_by_epoch(case, epoch)


def _glorot(sizes: tuple[int, ...], key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Weights (d_in, d_out), as JAX and numpy users mostly lay them out, and biases of 0."""
    init, pairs = jax.nn.initializers.glorot_uniform(), list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    return [(init(k, pair), jnp.zeros(pair[1])) for k, pair in zip(keys, pairs, strict=True)]


PEERS = {
    "fnn": with_fnn,
    "optax scan": with_optax_scan,
    "equinox": with_equinox,
    "flax": with_flax,
    "torch": with_torch,
    "torch fused": partial(with_torch, fused=True),
    "torch compiled": partial(with_torch, fused=True, compiled=True),
    "scikit-learn": with_sklearn,
    "numpy": with_numpy,
}
SPINNING = {"torch", "torch fused", "torch compiled", "scikit-learn", "numpy"}
"""Their worker threads spin on for a while after the last job, PyTorch's and BLAS's."""


def run(quick: bool) -> dict:
    """Every case, every peer that is installed."""
    result = {}
    for case in CASES[:2] if quick else CASES:
        x, y = clusters(case)
        runs, losses, absent = {}, {}, {}
        for name, build in PEERS.items():
            try:
                runs[name] = build(case, x, y)
                losses[name] = [float(runs[name]()) for _ in range(3)][-1]
            except Exception as error:
                # A peer that is not installed, or that has no compiler here, is a row less.
                runs.pop(name, None)
                absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        samples = alternate(
            runs, rounds=5 if quick else 20, least=0.02, rest_after=SPINNING & set(runs)
        )
        lead = {name: ratio(samples[name], samples["fnn"]) for name in runs}
        rows = [
            [
                name,
                samples[name].median / (case.epochs * case.steps) * 1e6,
                lead[name].median,
                *lead[name].quartiles,
                losses[name],
            ]
            for name in runs
        ]
        size = f"batch {case.batch}, {case.examples} examples, runs of {case.epochs} epochs"
        print(f"\n{case.name}, {size}")
        print(
            table(["", "us per step", "times fnn", "quartile 1", "quartile 3", "loss, run 3"], rows)
        )
        for name, reason in absent.items():
            print(f"{name}: left out, {reason}")
        result[case.name] = {
            "batch": case.batch,
            "examples": case.examples,
            "epochs": case.epochs,
            "seconds_a_run": {name: samples[name].summary() for name in runs},
            "times_fnn": {name: lead[name].summary() for name in runs},
            "loss of the third run": losses,
            "absent": absent,
        }
    return {"networks": result}


def plot(result: dict, folder: Path) -> None:
    """How many times as long as fnn each takes, one panel per network."""
    import matplotlib.pyplot as plt

    cases = result["networks"]
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3.2), layout="constrained")
    for axis, case in zip(axes, cases, strict=True):
        times = cases[case]["times_fnn"]
        names = list(times)[::-1]
        medians = np.array([times[n]["median"] for n in names])
        low, high = (np.array([times[n][f"quartile_{q}"] for n in names]) for q in (1, 3))
        colors = ["C0" if n == "fnn" else "0.8" for n in names]
        bars = axis.barh(names, medians, xerr=(medians - low, high - medians), color=colors)
        axis.bar_label(bars, [f"{value:.3g}" for value in medians], label_type="center")
        axis.axvline(1, color="C0", linewidth=0.8)
        axis.set(xscale="log")
        axis.set_title(f"{case}, batch {cases[case]['batch']}", fontsize="small")
        axis.set_xlim(left=0.3)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("time of a run, fnn = 1")
    figure.savefig(folder / "peers.png", dpi=150)
    plt.close(figure)
