import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
start, static = eqx.partition(eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0)), eqx.is_array)
optimizer = optax.adam(2e-3)


def loss(params, mask, x, y):
    model = eqx.combine(jax.tree.map(jnp.multiply, params, mask), static)
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@jax.jit
def step(params, slots, mask, x, y):
    value, grads = jax.value_and_grad(loss)(params, mask, x, y)
    updates, slots = optimizer.update(grads, slots)
    return optax.apply_updates(params, updates), slots, value


def trained(mask):
    params, slots, key = start, optimizer.init(start), jax.random.key(1)
    for _ in range(15):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            params, slots, value = step(params, slots, mask, x[rows], y[rows])
    return params


def largest(p):
    kept = jnp.abs(p) >= jnp.quantile(jnp.abs(p), 0.8) if p.ndim > 1 else jnp.ones_like(p)
    return kept.astype(p.dtype)


mask = jax.tree.map(largest, trained(jax.tree.map(jnp.ones_like, start)))
ticket = eqx.combine(jax.tree.map(jnp.multiply, trained(mask), mask), static)
prediction = jax.vmap(ticket)(jnp.asarray(test.x / 16))
print(f"a fifth of the weights: accuracy {(prediction.argmax(-1) == test.y).mean():.2f}")
