import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.4, seed=0)
is_eight = train.y == 8
kept = ~is_eight | (is_eight.cumsum() <= 10)
x, y = jnp.asarray(train.x[kept] / 16), jnp.asarray(is_eight[kept].astype(int))
optimizer = optax.adam(1e-3)


def loss(model, x, y, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y)
    return (weights[y] * losses).mean()


@eqx.filter_jit
def step(model, slots, x, y, weights):
    grads = eqx.filter_grad(loss)(model, x, y, weights)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


def accuracies(weights):
    model = eqx.nn.MLP(64, 2, 32, 1, key=jax.random.key(0))
    slots, key = optimizer.init(eqx.filter(model, eqx.is_array)), jax.random.key(1)
    for _ in range(15):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            model, slots = step(model, slots, x[rows], y[rows], weights)
    prediction = jax.vmap(model)(jnp.asarray(test.x / 16))
    right = (prediction.argmax(-1) == 1) == (test.y == 8)
    return right[test.y == 8].mean(), right[test.y != 8].mean()


for weights in (jnp.ones(2), 0.5 / (y == jnp.arange(2)[:, None]).mean(1)):
    eights, others = accuracies(weights)
    print(f"right: {eights:.2f} of the eights, {others:.2f} of the others")
