import equinox as eqx
import jax
import jax.numpy as jnp
import optax

key = jax.random.key(0)
x = jax.random.uniform(key, (256, 1), minval=-2.0, maxval=2.0)
y = jnp.sin(2 * x)


class Network(eqx.Module):
    first: eqx.nn.Linear
    hidden: list
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Linear(1, 64, key=keys[0])
        self.hidden = [eqx.nn.Linear(64, 64, key=k) for k in keys[1:3]]
        self.dropout = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.Linear(64, 1, key=keys[3])

    def __call__(self, x, key):
        x = jax.nn.relu(self.first(x))
        for layer, k in zip(self.hidden, jax.random.split(key, 2), strict=True):
            x = self.dropout(jax.nn.relu(layer(x)), key=k)
        return self.last(x)


model = Network(key)
optimizer = optax.adam(3e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y, key):
    prediction = jax.vmap(model)(x, jax.random.split(key, len(x)))
    return jnp.square(prediction - y).mean()


@eqx.filter_jit
def step(model, slots, x, y, key):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, y, key)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


for _ in range(100):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, 256)
    for rows in order.reshape(4, 64):
        key, step_key = jax.random.split(key)
        model, slots, value = step(model, slots, x[rows], y[rows], step_key)
points = jnp.array([[0.0], [6.0]])
draws = jax.vmap(lambda k: jax.vmap(lambda x: model(x, k))(points))(jax.random.split(key, 100))
near, far = draws.std(0)[:, 0]
print(f"far from the data it is less sure: {far > 3 * near}")
