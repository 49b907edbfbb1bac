# %% [markdown]
# # From a table to a report
#
# A data frame with text, dates and blanks, made here; a network that learns from it; and what it has
# learned.

# %%
import datetime

import jax
import jax.numpy as jnp
import numpy as np
import polars

import fnn
from fnn import data

rng = np.random.default_rng(0)
n = 600
plan = rng.choice(["basic", "plus", "pro"], n, p=[0.5, 0.3, 0.2])
days = rng.integers(0, 2000, n)
calls = rng.poisson(2, n)
risk = calls + 3 * (plan == "basic") - days / 500 + rng.normal(0, 1, n)
table = polars.DataFrame(
    {
        "plan": plan,
        "joined": [datetime.date(2019, 1, 1) + datetime.timedelta(int(d)) for d in days],
        "calls": [None if blank else int(c) for c, blank in zip(calls, rng.random(n) < 0.1)],
        "left": np.where(risk > 2, "yes", "no"),
    }
)
table.head()

# %% [markdown]
# `data.load` reads the frame, `data.split` holds a fifth out, and `data.Encoding` decides from the
# training part how each column becomes inputs.

# %%
train, test = data.split(data.load(table, target="left"), 0.2, seed=0)
encoding = data.Encoding.of(train)
for feature in encoding.features:
    print(f"{feature.name}: {feature.describe()}")

# %%
x, test_x = (jnp.asarray(encoding.apply(part.x), jnp.float32) for part in (train, test))
y, test_y = jnp.asarray(train.y), jnp.asarray(test.y)
network = fnn.mlp((x.shape[1], 32, 2))


def accuracy(prediction, y):
    return prediction.argmax(-1) == y


state, history = fnn.fit(
    network,
    fnn.softmax_cross_entropy,
    fnn.adamw(3e-3, weight_decay=0.1),
    (x, y),
    key=jax.random.key(0),
    epochs=40,
    batch_size=32,
    validation=(test_x, test_y),
    metrics={"accuracy": accuracy},
)
history

# %% [markdown]
# How important is each column? Shuffle its inputs among the held-out examples, and see how much the
# accuracy falls.


# %%
def score(x):
    prediction, _ = network.forward(state.params, x)
    return float(accuracy(prediction, test_y).mean())


drops = {}
for i, feature in enumerate(encoding.features):
    shuffled = np.array(test.x)
    shuffled[:, i] = rng.permutation(shuffled[:, i])
    drops[feature.name] = score(test_x) - score(jnp.asarray(encoding.apply(shuffled), jnp.float32))
assert score(test_x) > 0.75
polars.DataFrame({"column": list(drops), "accuracy lost": list(drops.values())})
