import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

x = jnp.asarray(data.load("digits").x > 8, jnp.float32)


class VAE(eqx.Module):
    hidden: eqx.nn.Linear
    mean: eqx.nn.Linear
    log_variance: eqx.nn.Linear
    decoder: eqx.nn.MLP

    def __init__(self, key):
        a, b, c, d = jax.random.split(key, 4)
        self.hidden = eqx.nn.Linear(64, 128, key=a)
        self.mean = eqx.nn.Linear(128, 8, key=b)
        self.log_variance = eqx.nn.Linear(128, 8, key=c)
        self.decoder = eqx.nn.MLP(8, 64, 128, 1, key=d)

    def __call__(self, x, key):
        hidden = jax.nn.relu(self.hidden(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return self.decoder(code), mean, log_variance


def objective(model, x, key):
    logits, mean, log_variance = jax.vmap(model)(x, jax.random.split(key, len(x)))
    error = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
    divergence = (mean**2 + jnp.exp(log_variance) - log_variance - 1).sum(-1) / 2
    return (error + divergence).mean()


model, optimizer = VAE(jax.random.key(0)), optax.adam(3e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def step(model, slots, x, key):
    value, grads = eqx.filter_value_and_grad(objective)(model, x, key)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


key = jax.random.key(1)
for _ in range(30):
    key, order_key = jax.random.split(key)
    order, values = jax.random.permutation(order_key, len(x)), []
    for i in range(0, len(x), 64):
        key, step_key = jax.random.split(key)
        batch = x[order[i : i + 64]]
        model, slots, value = step(model, slots, batch, step_key)
        values.append(value * len(batch))
p = x.mean(0)
clipped = jnp.clip(p, 1e-6, 1 - 1e-6)
independent = -(p * jnp.log(clipped) + (1 - p) * jnp.log1p(-clipped)).sum()
print(f"{sum(values) / len(x):.1f} nats per image, {independent:.1f} with independent pixels")
