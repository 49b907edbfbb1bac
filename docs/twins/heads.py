import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, ink = jnp.asarray(digits.x / 16), jnp.asarray(digits.x.mean(-1, keepdims=True) / 16)
y = jnp.asarray(digits.y)


class Network(eqx.Module):
    trunk: eqx.nn.Linear
    label: eqx.nn.Linear
    value: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.trunk = eqx.nn.Linear(64, 64, key=a)
        self.label = eqx.nn.Linear(64, 10, key=b)
        self.value = eqx.nn.Linear(64, 1, key=c)

    def __call__(self, x):
        x = jax.nn.relu(self.trunk(x))
        return self.label(x), self.value(x)


model = Network(jax.random.key(0))
optimizer = optax.adam(2e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y, ink):
    label, value = jax.vmap(model)(x)
    classes = optax.softmax_cross_entropy_with_integer_labels(label, y).mean()
    return classes + jnp.square(value - ink).mean()


@eqx.filter_jit
def step(model, slots, x, y, ink):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, y, ink)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


key = jax.random.key(1)
for _ in range(15):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    for i in range(0, len(x), 64):
        rows = order[i : i + 64]
        model, slots, total = step(model, slots, x[rows], y[rows], ink[rows])
label, value = jax.vmap(model)(x)
close = jnp.abs(value - ink).mean() < 0.1
print(f"accuracy {(label.argmax(-1) == y).mean():.2f}, values within a tenth: {close}")
