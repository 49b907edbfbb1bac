import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
optimizer = optax.adam(1e-2)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, averaged, slots, x, y):
    grads = eqx.filter_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots)
    model = eqx.apply_updates(model, updates)
    new, old = eqx.filter(model, eqx.is_array), eqx.filter(averaged, eqx.is_array)
    return model, eqx.combine(optax.incremental_update(new, old, 0.01), model), slots


averaged, key = model, jax.random.key(1)
for _ in range(5):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    for i in range(0, len(x), 4):
        rows = order[i : i + 4]
        model, averaged, slots = step(model, averaged, slots, x[rows], y[rows])
last, average = (loss(m, jnp.asarray(test.x / 16), test.y) for m in (model, averaged))
print(f"the average's loss is at least a tenth below the last parameters': {average < 0.9 * last}")
