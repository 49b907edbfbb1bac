import equinox as eqx
import jax
import jax.numpy as jnp
import optax

size, keys = 128, jax.random.split(jax.random.key(0), 4)
generator = eqx.nn.MLP(2, 2, 64, 1, key=keys[0])
discriminator = eqx.nn.MLP(2, 1, 64, 1, key=keys[1])
optimizer = optax.adam(2e-3, b1=0.5)
y = jnp.repeat(jnp.array([[1.0], [0.0]]), size, 0)


def discriminator_loss(discriminator, generator, real, z):
    x = jnp.concatenate([real, jax.vmap(generator)(z)])
    return optax.sigmoid_binary_cross_entropy(jax.vmap(discriminator)(x), y).mean()


def generator_loss(generator, discriminator, z):
    logits = jax.vmap(lambda z: discriminator(generator(z)))(z)
    return optax.sigmoid_binary_cross_entropy(logits, y[:size]).mean()


@eqx.filter_jit
def step(generator, discriminator, slots, key):
    g_slots, d_slots = slots
    real, z = jax.random.normal(key, (2, size, 2))
    real /= jnp.linalg.norm(real, axis=-1, keepdims=True)
    grads = eqx.filter_grad(discriminator_loss)(discriminator, generator, real, z)
    updates, d_slots = optimizer.update(grads, d_slots)
    discriminator = eqx.apply_updates(discriminator, updates)
    grads = eqx.filter_grad(generator_loss)(generator, discriminator, z)
    updates, g_slots = optimizer.update(grads, g_slots)
    return eqx.apply_updates(generator, updates), discriminator, (g_slots, d_slots)


both = generator, discriminator
slots = tuple(optimizer.init(eqx.filter(model, eqx.is_array)) for model in both)
for key in jax.random.split(keys[2], 3000):
    generator, discriminator, slots = step(generator, discriminator, slots, key)
drawn = jax.vmap(generator)(jax.random.normal(keys[3], (1000, 2)))
radius = jnp.linalg.norm(drawn, axis=-1)
print(f"mean radius {radius.mean():.2f}, spread below 0.3: {radius.std() < 0.3}")
