"""Training compiled for GPUs and TPUs that are not there: kernels, modelled time, memory.

One epoch of the peers' networks, of an 8192-wide one and of one layer of a transformer, fnn beside
optax with autodiff as one scan, by the compilers of H100, B200 and TPUs, where these are installed.
Nothing is run and no number is measured: kernels and bytes are those of the compiled program, times
are XLA's model without the time to start a kernel. "step" is one turn of the epoch's loop.

In environments with one of the compilers each, JAX_PLATFORMS=cpu, a run adds its targets to
those that the result has already.
"""

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import fnn
from benchmarks.data import CASES, Case
from benchmarks.peers import RATE, optax_epoch
from benchmarks.report import table
from fnn import targets

NAMES = ("H100", "B200", "TPU v5e", "TPU v5p", "TPU v6e")
WIDE = Case((8192, 8192, 8192, 8192, 10), 8192, 32768, 1)
BLOCK = Case((256, 1024, 256), 32, 1024, 1)
TOKENS, HEADS = 128, 8
HEADINGS = ["", "network", "kernels per step", "us per step, modelled", "kernels per epoch",
            "temporary, MB"]  # fmt: skip
KEPT = Path(__file__).parent / "results" / "targets.json"


def run(quick: bool) -> dict[str, Any]:
    """A row per target, network and contestant."""
    kept = json.loads(KEPT.read_text())["programs"] if KEPT.exists() else []
    installed = [name for name in NAMES if targets.targets()[name]]
    rows = [row for row in kept if row["target"] not in installed]
    for name in installed:
        for case in CASES[:2] if quick else [*CASES, WIDE, BLOCK]:
            for contestant, (epoch, state) in contestants(case).items():
                found = read(name, case, contestant, epoch, state)
                rows.append(found)
                print(found, flush=True)
    shown = [
        [f"{r['target']}, {r['contestant']}", r["network"], r["kernels"], r["microseconds"],
         r["kernels_per_epoch"], (r["temporary"] or 0) / 1e6]
        for r in rows
    ]  # fmt: skip
    print(table(HEADINGS, shown))
    return {"programs": rows}


def contestants(case: Case) -> dict[str, tuple[Any, Any]]:
    """{name: (epoch(state, data, key), shapes of its state)}."""
    key, found = jax.random.key(0), {}
    is_block = case is BLOCK
    loss = fnn.mse if is_block else fnn.softmax_cross_entropy
    for name, dtype in (("fnn", None), ("fnn, bfloat16", jnp.bfloat16)):
        network, optimizer = block() if is_block else fnn.mlp(case.sizes), fnn.adam(RATE)
        network = network if dtype is None else fnn.compute_in(network, dtype)
        epoch = fnn.make_epoch(network, loss, optimizer, case.batch)
        init = lambda key, network=network, optimizer=optimizer: optimizer.init(network.init(key))
        found[name] = epoch, jax.eval_shape(init, key)
    if find_spec("optax") is None:
        return found
    peer = _optax_block if is_block else partial(optax_epoch, case, RATE)
    state = jax.eval_shape(lambda key: peer(key)[0], key)
    # The epoch's own initial state is dropped by the compiler.
    return found | {"optax scan": (lambda *args: peer(jax.random.key(0))[1](*args), state)}


def block() -> fnn.Layer:
    """A layer of a transformer with a causal mask: attention, then two dense layers, each with a
    skip and after a normalisation."""
    d, wide, _ = BLOCK.sizes
    attention = fnn.serial(fnn.layer_norm(d), fnn.attention(d, HEADS, causal=True))
    mlp = fnn.serial(fnn.layer_norm(d), fnn.dense(d, wide), fnn.gelu, fnn.dense(wide, d))
    return fnn.serial(fnn.skip(attention), fnn.skip(mlp))


def _optax_block(key: Any) -> tuple[Any, Callable[..., Any]]:
    """A fresh state and an epoch of the same forward pass by autodiff and optax, with JAX's own
    attention."""
    import optax

    optimizer, d, n = optax.adam(RATE), BLOCK.sizes[0], BLOCK.examples
    params = block().init(key)

    def normalised(p: Any, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return (
            x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["gain"] + p["bias"]
        )

    def objective(params: Any, x: Any, y: Any) -> Any:
        (norm, attention), (second, first, _, last) = params
        h = normalised(norm, x)
        heads = lambda name: (h @ attention[name].T).reshape(*h.shape[:2], HEADS, d // HEADS)
        mixed = jax.nn.dot_product_attention(*map(heads, "QKV"), is_causal=True)
        x = x + mixed.reshape(x.shape) @ attention["O"].T
        h = jax.nn.gelu(normalised(second, x) @ first["W"].T + first["b"], approximate=False)
        return jnp.square(x + h @ last["W"].T + last["b"] - y).mean()

    def epoch(state: Any, data: Any, key: Any) -> Any:
        def step(state: Any, rows: Any) -> Any:
            params, slots = state
            loss, grads = jax.value_and_grad(objective)(params, data[0][rows], data[1][rows])
            updates, slots = optimizer.update(grads, slots)
            return (optax.apply_updates(params, updates), slots), loss

        order = jax.random.permutation(key, n).reshape(-1, BLOCK.batch)
        state, losses = jax.lax.scan(step, state, order)
        return state, losses.mean()

    return (params, optimizer.init(params)), epoch


def read(target: str, case: Case, contestant: str, epoch: Any, state: Any) -> dict[str, Any]:
    """What the target's compiler makes of one epoch."""
    n, d, shape = case.examples, case.sizes[0], jax.ShapeDtypeStruct
    data = shape((n, d), jnp.float32), shape((n,), jnp.int32)
    if case is BLOCK:
        data = (shape((n, TOKENS, d), jnp.float32),) * 2
    jitted = jax.jit(epoch, donate_argnums=0)
    report = targets.compile_for(target, jitted, state, data, jax.random.key(1))
    loops = [loop for loop in report.loops if loop.trips is None or loop.seconds]
    step = max(loops, key=lambda loop: loop.seconds or 0, default=None)
    launched = sum(report.kernels.values())
    launched += sum(sum(loop.kernels.values()) * (loop.trips or 1) for loop in report.loops)
    return {
        "target": target,
        "network": f"transformer {d}" if case is BLOCK else case.name,
        "batch": case.batch,
        "contestant": contestant,
        "fits": report.fits,
        "kernels": step and sum(step.kernels.values()),
        "kinds": step and step.kernels,
        "trips": step and step.trips,
        "microseconds": step and step.seconds and step.seconds * 1e6,
        "kernels_per_epoch": launched,
        "loops": len(report.loops),
        "temporary": report.temp_bytes,
        "modelled_seconds": report.seconds,
        "modelled_share_of_peak": report.share,
    }
