import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
optimizer = optax.adam(3e-3)


def noisy(key, x):
    return x + 0.3 * jax.random.normal(key, x.shape)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, slots, x, y):
    grads = eqx.filter_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


def accuracy(augment):
    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    slots, key = optimizer.init(eqx.filter(model, eqx.is_array)), jax.random.key(1)
    for _ in range(30):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 64):
            rows = order[i : i + 64]
            key, noise_key = jax.random.split(key)
            model, slots = step(model, slots, augment(noise_key, x[rows]), y[rows])
    test_x = noisy(jax.random.key(2), jnp.asarray(test.x / 16))
    return (jax.vmap(model)(test_x).argmax(-1) == test.y).mean()


plain = accuracy(lambda key, x: x)
print(f"accuracy on noisy images {plain:.2f}, trained with noise {accuracy(noisy):.2f}")
