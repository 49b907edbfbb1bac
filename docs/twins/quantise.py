import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
optimizer = optax.adam(2e-3)


def ternary(p):
    """Matrices: -s, 0 or s, with 0 for the half of the weights nearest to it."""
    large = jnp.abs(p) > jnp.median(jnp.abs(p))
    scale = jnp.abs(p).mean(where=large)
    return jnp.where(large, scale * jnp.sign(p), 0) if p.ndim == 2 else p


def quantised(model):
    """The model at rounded parameters, with the gradient of the identity: straight through."""
    arrays, static = eqx.partition(model, eqx.is_array)
    through = lambda p: p + jax.lax.stop_gradient(ternary(p) - p)
    return eqx.combine(jax.tree.map(through, arrays), static)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def trained(model, seen):
    @eqx.filter_jit
    def step(model, slots, x, y):
        grads = eqx.filter_grad(lambda model: loss(seen(model), x, y))(model)
        updates, slots = optimizer.update(grads, slots)
        return eqx.apply_updates(model, updates), slots

    slots = optimizer.init(eqx.filter(model, eqx.is_array))
    key = jax.random.key(1)
    for _ in range(15):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            model, slots = step(model, slots, x[rows], y[rows])
    return model


def accuracy(model):
    prediction = jax.vmap(model)(jnp.asarray(test.x / 16))
    return (prediction.argmax(-1) == test.y).mean()


model = trained(eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0)), lambda model: model)
before, after = accuracy(quantised(model)), accuracy(quantised(trained(model, quantised)))
print(f"accuracy {accuracy(model):.2f}; rounded {before:.2f}, trained further {after:.2f}")
