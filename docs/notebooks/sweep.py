# %% [markdown]
# # A sweep of 1,000 networks
#
# Twenty learning rates by fifty seeds, in one compiled program: `jax.vmap` over a whole training run.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import fnn
from fnn import data

train, test = data.split(data.load("iris"), 0.3, seed=0)
centre, spread = train.x.mean(0), train.x.std(0)
x, test_x = (jnp.asarray((part.x - centre) / spread, jnp.float32) for part in (train, test))
y, test_y = jnp.asarray(train.y), jnp.asarray(test.y)
network = fnn.mlp((4, 16, 3))


def accuracy(rate, key):
    run = fnn.make_train(network, fnn.softmax_cross_entropy, fnn.adam(rate), 32, epochs=10)
    state, _ = run(network.init(key), (x, y), key)
    prediction, _ = network.forward(state.params, test_x)
    return (prediction.argmax(-1) == test_y).mean()


# %% [markdown]
# The inner `vmap` maps over the seeds, the outer one over the rates.

# %%
rates = jnp.logspace(-4, 0.5, 20)
keys = jax.random.split(jax.random.key(0), 50)
over_seeds = jax.vmap(accuracy, (None, 0))
found = jax.jit(jax.vmap(over_seeds, (0, None)))(rates, keys)
found.shape

# %% [markdown]
# Every row is a learning rate, every column a seed.

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
image = axis.pcolormesh(jnp.arange(50), rates, found, vmin=0, vmax=1)
axis.set(xlabel="seed", ylabel="learning rate", yscale="log")
figure.colorbar(image, label="test accuracy")

# %%
mean = found.mean(1)
best = rates[mean.argmax()]
assert mean.max() > 0.9
print(
    f"best rate {best:.3f}: mean accuracy {mean.max():.2f}, worst seed {found[mean.argmax()].min():.2f}"
)
