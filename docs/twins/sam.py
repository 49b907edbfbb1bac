import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
wrong = jax.random.bernoulli(jax.random.key(3), 0.4, y.shape)
y = jnp.where(wrong, jax.random.randint(jax.random.key(4), y.shape, 0, 10), y)
optimizer = optax.sgd(0.1, momentum=0.9)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def plain(model, x, y):
    return eqx.filter_grad(loss)(model, x, y)


def sam(model, x, y):
    grads = plain(model, x, y)
    scale = 0.5 / optax.global_norm(grads)
    there = eqx.apply_updates(model, jax.tree.map(lambda g: scale * g, grads))
    return plain(there, x, y)


def accuracy(gradient):
    @eqx.filter_jit
    def step(model, slots, x, y):
        updates, slots = optimizer.update(gradient(model, x, y), slots)
        return eqx.apply_updates(model, updates), slots

    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    slots = optimizer.init(eqx.filter(model, eqx.is_array))
    key = jax.random.key(1)
    for _ in range(40):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 64):
            model, slots = step(model, slots, x[order[i : i + 64]], y[order[i : i + 64]])
    prediction = jax.vmap(model)(jnp.asarray(test.x / 16))
    return (prediction.argmax(-1) == test.y).mean()


print(f"accuracy {accuracy(plain):.2f}, with SAM {accuracy(sam):.2f}")
