import equinox as eqx
import jax
import jax.numpy as jnp
import optax

letters, frames = 6, 20


def words(key, n):
    """Noisy frames, a quarter with a letter, and the letters: (labels, paddings)."""
    a, b, c = jax.random.split(key, 3)
    spoken = jax.random.bernoulli(b, 0.25, (n, frames))
    codes = jnp.where(spoken, jax.random.randint(a, spoken.shape, 1, letters + 1), 0)
    clean = jax.nn.one_hot(codes, letters + 1)
    first = jnp.argsort(~spoken, -1)
    labels = jnp.take_along_axis(codes, first, -1)
    noise = 0.25 * jax.random.normal(c, clean.shape)
    return clean + noise, (labels, (labels == 0).astype(float))


model = eqx.nn.MLP(letters + 1, letters + 1, 32, 1, key=jax.random.key(0))
optimizer = optax.adam(1e-2)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, word):
    logits = jax.vmap(jax.vmap(model))(x)
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:-1]), *word).mean()


@eqx.filter_jit
def step(model, slots, x, word):
    grads = eqx.filter_grad(loss)(model, x, word)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


x, (labels, paddings) = words(jax.random.key(1), 1000)
key = jax.random.key(2)
for _ in range(5):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, 1000)
    for i in range(0, 1000, 50):
        rows = order[i : i + 50]
        model, slots = step(model, slots, x[rows], (labels[rows], paddings[rows]))
x, (labels, _) = words(jax.random.key(3), 200)
codes = jax.vmap(jax.vmap(model))(x).argmax(-1)
read = jnp.take_along_axis(codes, jnp.argsort(codes == 0, -1), -1)
print(f"words read without a mistake: {(read == labels).all(-1).mean():.2f}")
