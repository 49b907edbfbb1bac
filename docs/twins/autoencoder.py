import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

x = jnp.asarray(data.load("digits").x / 16)
encoder_key, decoder_key, key = jax.random.split(jax.random.key(0), 3)
encoder = eqx.nn.MLP(64, 8, 64, 1, jnp.tanh, key=encoder_key)
decoder = eqx.nn.MLP(8, 64, 64, 1, jnp.tanh, jax.nn.sigmoid, key=decoder_key)
model = (encoder, decoder)
optimizer = optax.adam(3e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x):
    encoder, decoder = model
    return jnp.square(jax.vmap(decoder)(jax.vmap(encoder)(x)) - x).mean()


@eqx.filter_jit
def step(model, slots, x):
    value, grads = eqx.filter_value_and_grad(loss)(model, x)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


for _ in range(30):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    losses = []
    for i in range(0, len(x), 64):
        model, slots, value = step(model, slots, x[order[i : i + 64]])
        losses.append(value)
codes = jax.vmap(model[0])(x)
share = 1 - jnp.stack(losses).mean() / x.var(0).mean()
print(f"{codes.shape[1]} numbers per image, {share:.0%} of the variance")
