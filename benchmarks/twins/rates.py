import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, y = jnp.asarray(digits.x / 16), jnp.asarray(digits.y)
many, few, rest = slice(0, 1000), slice(1000, 1020), slice(1020, None)


def loss(model, x, y):
    trunk, head = model
    logits = jax.vmap(lambda x: head(trunk(x)))(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def trained(model, optimizer, x, y, batch_size, epochs):
    slots, key = optimizer.init(eqx.filter(model, eqx.is_array)), jax.random.key(1)

    @eqx.filter_jit
    def step(model, slots, x, y):
        grads = eqx.filter_grad(loss)(model, x, y)
        updates, slots = optimizer.update(grads, slots)
        return eqx.apply_updates(model, updates), slots

    for _ in range(epochs):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), batch_size):
            rows = order[i : i + batch_size]
            model, slots = step(model, slots, x[rows], y[rows])
    return model


keys = jax.random.split(jax.random.key(0))
trunk = eqx.nn.MLP(64, 64, 64, 1, final_activation=jax.nn.relu, key=keys[0])
head = eqx.nn.Linear(64, 10, key=keys[1])
learned, _ = trained((trunk, head), optax.adam(3e-3), x[many], y[many], 32, 20)


def accuracy(trunk_rate, head_rate):
    rates = {"trunk": optax.adam(trunk_rate), "head": optax.adam(head_rate)}
    label = lambda name, part: jax.tree.map(lambda _: name, eqx.filter(part, eqx.is_array))
    labels = (label("trunk", learned), label("head", head))
    optimizer = optax.multi_transform(rates, labels)
    trunk, tuned = trained((learned, head), optimizer, x[few], y[few] % 2, 10, 40)
    prediction = jax.vmap(lambda x: tuned(trunk(x)))(x[rest])
    return (prediction.argmax(-1) == y[rest] % 2).mean()


one = [accuracy(rate, rate) for rate in (1e-4, 1e-2)]
print(f"one rate: {one[0]:.2f} or {one[1]:.2f}, two rates: {accuracy(1e-4, 1e-2):.2f}")
