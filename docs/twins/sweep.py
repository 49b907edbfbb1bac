import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def accuracy(rate, key):
    optimizer = optax.adam(rate)
    params, static = eqx.partition(eqx.nn.MLP(64, 10, 32, 1, key=key), eqx.is_array)

    def step(state, rows):
        params, slots = state
        grads = eqx.filter_grad(loss)(eqx.combine(params, static), x[rows], y[rows])
        updates, slots = optimizer.update(grads, slots)
        return (eqx.apply_updates(params, updates), slots), None

    def epoch(state, key):
        order = jax.random.permutation(key, len(x))
        full = len(x) - len(x) % 64
        state, _ = jax.lax.scan(step, state, order[:full].reshape(-1, 64))
        return step(state, order[full:])

    keys = jax.random.split(key, 5)
    (params, _), _ = jax.lax.scan(epoch, (params, optimizer.init(params)), keys)
    prediction = jax.vmap(eqx.combine(params, static))(jnp.asarray(test.x / 16))
    return (prediction.argmax(-1) == test.y).mean()


rates, keys = jnp.logspace(-4, 0, 9), jax.random.split(jax.random.key(0), 8)
found = jax.jit(jax.vmap(jax.vmap(accuracy, (None, 0)), (0, None)))(rates, keys)
figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
image = axis.pcolormesh(jnp.arange(8), jnp.log10(rates), found, vmin=0, vmax=1)
axis.set(xlabel="seed", ylabel="learning rate, log10")
figure.colorbar(image, label="test accuracy")
figure.savefig("sweep.png", dpi=120)
mean = found.mean(1)
print(f"best rate {rates[mean.argmax()]:.3f}: accuracy {mean.max():.2f} over {len(keys)} seeds")
