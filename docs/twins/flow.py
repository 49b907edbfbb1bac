import equinox as eqx
import jax
import jax.numpy as jnp
import optax

angle = 2 * jnp.pi * jax.random.uniform(jax.random.key(0), (4096,))
circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
model = eqx.nn.MLP(3, 2, 64, 2, jax.nn.silu, key=jax.random.key(1))
optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 2048))
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def velocity(model, x, t):
    return jax.vmap(model)(jnp.concatenate([x, t], -1))


def loss(model, x, key):
    noise_key, t_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x.shape)
    t = jax.random.uniform(t_key, (len(x), 1))
    found = velocity(model, (1 - t) * noise + t * x, t)
    return jnp.square(found - (x - noise)).mean()


@eqx.filter_jit
def step(model, slots, x, key):
    grads = eqx.filter_grad(loss)(model, x, key)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


key = jax.random.key(2)
for _ in range(64):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(circle))
    for i in range(0, len(circle), 128):
        key, step_key = jax.random.split(key)
        model, slots = step(model, slots, circle[order[i : i + 128]], step_key)


def flow(x, t):
    return x + velocity(model, x, jnp.full((len(x), 1), t)) / 100, None


x, _ = jax.lax.scan(flow, jax.random.normal(jax.random.key(3), (1000, 2)), jnp.arange(100) / 100)
radius = jnp.linalg.norm(x, axis=-1)
print(f"radius {radius.mean():.2f} +- {radius.std():.2f}")
