from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)


class State(NamedTuple):
    step: Any
    z: Any
    average: Any


def schedule_free(rate, beta=0.9):
    def init(params):
        return State(jnp.int32(0), params, params)

    def update(grads, state, params):
        c = 1 / (state.step + 1)
        mix = lambda a, b, share: jax.tree.map(lambda a, b: a + share * (b - a), a, b)
        z = jax.tree.map(lambda z, g: z - rate * g, state.z, grads)
        average = mix(state.average, z, c)
        updates = jax.tree.map(lambda new, old: new - old, mix(z, average, beta), params)
        return updates, State(state.step + 1, z, average)

    return optax.GradientTransformation(init, update)


model, optimizer = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0)), schedule_free(0.5)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, slots, x, y):
    grads = eqx.filter_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), slots


key = jax.random.key(1)
for _ in range(10):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    for i in range(0, len(x), 32):
        model, slots = step(model, slots, x[order[i : i + 32]], y[order[i : i + 32]])
average = eqx.combine(slots.average, model)
prediction = jax.vmap(average)(jnp.asarray(test.x / 16))
print(f"accuracy {(prediction.argmax(-1) == test.y).mean():.2f}")
