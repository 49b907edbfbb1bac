import json
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.5, seed=0)
(x, y), held_out = ((jnp.asarray(d.x / 16), jnp.asarray(d.y)) for d in (train, test))
optimizer = optax.adam(1e-2)


@eqx.filter_jit
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, slots, x, y):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


def fresh():
    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    return model, optimizer.init(eqx.filter(model, eqx.is_array))


def trained(epochs, folder):
    state, history = fresh(), []
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    if (folder / "history.json").exists():
        state = eqx.tree_deserialise_leaves(folder / "last.eqx", state)
        history = json.loads((folder / "history.json").read_text())
    for epoch in range(len(history), epochs):
        key = jax.random.fold_in(jax.random.key(1), epoch)
        order, values = jax.random.permutation(key, len(x)), []
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            *state, value = step(*state, x[rows], y[rows])
            values.append(value * len(rows))
        state = tuple(state)
        entry = {"loss": sum(values) / len(x), "validation_loss": loss(state[0], *held_out)}
        history.append({name: float(value) for name, value in entry.items()})
        if min(entry["validation_loss"] for entry in history) == history[-1]["validation_loss"]:
            eqx.tree_serialise_leaves(folder / "best.eqx", state)
        eqx.tree_serialise_leaves(folder / "last.eqx", state)
        (folder / "history.json").write_text(json.dumps(history))
    return state


with tempfile.TemporaryDirectory() as runs:
    trained(5, f"{runs}/a")  # stopped here
    resumed = trained(30, f"{runs}/a")
    straight = trained(30, f"{runs}/b")
    best = eqx.tree_deserialise_leaves(Path(runs, "a", "best.eqx"), fresh())
print("the same as without a stop:", bool(eqx.tree_equal(resumed, straight)))
best, last = (loss(state[0], *held_out) for state in (best, resumed))
print(f"validation loss {best:.2f} of the best epoch, {last:.2f} of the last")
