import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, new = (jnp.asarray(x / 16) for x in (digits.x[:1600], digits.x[1600:1700]))
keys = jax.random.split(jax.random.key(0))
model = tuple(eqx.nn.MLP(32, 32, 128, 1, key=key) for key in keys)
optimizer = optax.adam(3e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def similarities(model, x):
    upper, lower = model
    u, v = jax.vmap(upper)(x[:, :32]), jax.vmap(lower)(x[:, 32:])
    unit = lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return unit(u) @ unit(v).T


def loss(model, x):
    logits, labels = similarities(model, x) / 0.1, jnp.arange(len(x))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return (entropy(logits, labels) + entropy(logits.T, labels)).mean()


@eqx.filter_jit
def step(model, slots, x):
    grads = eqx.filter_grad(loss)(model, x)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


key = jax.random.key(1)
for _ in range(40):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    for i in range(0, len(x), 200):
        model, slots = step(model, slots, x[order[i : i + 200]])
similarity = similarities(model, new)
nearer = (similarity > jnp.diagonal(similarity)[:, None]).sum(-1)
print(f"the lower half is among the ten nearest of a hundred: {(nearer < 10).mean():.2f}")
