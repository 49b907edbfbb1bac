import equinox as eqx
import jax
import jax.numpy as jnp
import optax

start = eqx.nn.MLP(1, 1, 40, 2, jnp.tanh, key=jax.random.key(0))
inner, outer = optax.sgd(0.1), optax.adam(3e-3)


def task(key):
    keys = jax.random.split(key, 3)
    amplitude = jax.random.uniform(keys[0], minval=0.5, maxval=2.0)
    phase = jax.random.uniform(keys[1], maxval=jnp.pi)
    x = jax.random.uniform(keys[2], (20, 1), minval=-3.0, maxval=3.0)
    return x, amplitude * jnp.sin(x + phase)


def loss(model, x, y):
    return jnp.square(jax.vmap(model)(x) - y).mean()


def adapted_loss(model, key):
    x, y = task(key)
    grads = eqx.filter_grad(loss)(model, x[:10], y[:10])
    updates, _ = inner.update(grads, inner.init(eqx.filter(model, eqx.is_array)))
    return loss(eqx.apply_updates(model, updates), x[10:], y[10:])


def meta_loss(model, keys):
    return jax.vmap(adapted_loss, (None, 0))(model, keys).mean()


@eqx.filter_jit
def step(model, slots, key):
    grads = eqx.filter_grad(meta_loss)(model, jax.random.split(key, 16))
    updates, slots = outer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


model, slots = start, outer.init(eqx.filter(start, eqx.is_array))
for key in jax.random.split(jax.random.key(1), 1000):
    model, slots = step(model, slots, key)
tasks = jax.random.split(jax.random.key(2), 200)
share = meta_loss(model, tasks) / meta_loss(start, tasks)
print(f"one step on a new task leaves less than a fifth of the loss: {share < 0.2}")
