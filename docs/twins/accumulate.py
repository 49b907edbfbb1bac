import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, y = jnp.asarray(digits.x[:1280] / 16), jnp.asarray(digits.y[:1280])


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def trained(optimizer, batch_size):
    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    slots, key = optimizer.init(eqx.filter(model, eqx.is_array)), jax.random.key(1)

    @eqx.filter_jit
    def step(model, slots, x, y):
        grads = eqx.filter_grad(loss)(model, x, y)
        updates, slots = optimizer.update(grads, slots)
        return eqx.apply_updates(model, updates), slots

    for _ in range(10):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for rows in order.reshape(-1, batch_size):
            model, slots = step(model, slots, x[rows], y[rows])
    return model


whole = trained(optax.sgd(0.1, 0.9), 128)
parts = trained(optax.MultiSteps(optax.sgd(0.1, 0.9), 8), 16)
pairs = zip(whole.layers, parts.layers, strict=True)
same = all(jnp.allclose(a.weight, b.weight, atol=1e-4) for a, b in pairs)
print(f"eight batches of 16 train as one of 128: {same}")
