import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
background = 2 * jax.random.uniform(jax.random.key(2), (64,))
optimizer = optax.adam(1e-2)


class LoRA(eqx.Module):
    linear: eqx.nn.Linear
    A: jax.Array
    B: jax.Array

    def __init__(self, linear, rank, key):
        self.linear = linear
        d_in, d_out = linear.in_features, linear.out_features
        self.A = jax.random.normal(key, (rank, d_in)) / jnp.sqrt(d_in)
        self.B = jnp.zeros((d_out, rank))

    def __call__(self, x):
        return self.linear(x) + self.B @ (self.A @ x)


def loss(learned, fixed, x, y):
    logits = jax.vmap(eqx.combine(learned, fixed))(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@eqx.filter_jit
def step(learned, fixed, slots, x, y):
    grads = eqx.filter_grad(loss)(learned, fixed, x, y)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(learned, updates), slots


def trained(model, is_learned, x):
    learned, fixed = eqx.partition(model, is_learned)
    slots = optimizer.init(learned)
    key = jax.random.key(0)
    for _ in range(15):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            learned, slots = step(learned, fixed, slots, x[rows], y[rows])
    return eqx.combine(learned, fixed)


def accuracy(model):
    prediction = jax.vmap(model)(background + jnp.asarray(test.x / 16))
    return (prediction.argmax(-1) == test.y).mean()


def low_rank(model):
    return [leaf for layer in model.layers for leaf in (layer.A, layer.B)]


learned = trained(eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0)), eqx.is_array, x)
keys = jax.random.split(jax.random.key(1), len(learned.layers))
layers = tuple(LoRA(layer, 2, key) for layer, key in zip(learned.layers, keys, strict=True))
adapted = eqx.tree_at(lambda model: model.layers, learned, layers)
nothing = jax.tree.map(lambda _: False, adapted)
tuned = trained(adapted, eqx.tree_at(low_rank, nothing, [True] * 4), background + x)
before, after = accuracy(learned), accuracy(tuned)
count = sum(p.size for p in low_rank(tuned))
print(f"accuracy {after:.2f} by {count} learned numbers, below half without: {before < 0.5}")
