import equinox as eqx
import jax
import jax.numpy as jnp
import optax

letters, d, heads = 8, 32, 4


def texts(key, n):
    half = jax.random.randint(key, (n, 8), 0, letters)
    codes = jnp.concatenate([half, half], 1)
    return codes[:, :-1], codes[:, 1:]


class Block(eqx.Module):
    norms: list
    attention: eqx.nn.MultiheadAttention
    value: eqx.nn.Linear
    gate: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        a, b, c, e = jax.random.split(key, 4)
        self.norms = [eqx.nn.RMSNorm(d, use_bias=False) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(heads, d, key=a)
        self.value = eqx.nn.Linear(d, 64, use_bias=False, key=b)
        self.gate = eqx.nn.Linear(d, 64, use_bias=False, key=c)
        self.out = eqx.nn.Linear(64, d, use_bias=False, key=e)

    def __call__(self, x):
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, jnp.tril(jnp.ones((len(x), len(x)), bool)))
        h = jax.vmap(self.norms[1])(x)
        gated = jax.vmap(self.value)(h) * jax.nn.silu(jax.vmap(self.gate)(h))
        return x + jax.vmap(self.out)(gated)


class Network(eqx.Module):
    embedding: eqx.nn.Embedding
    positions: jax.Array
    blocks: list
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c, e = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(letters, d, key=a)
        self.positions = 0.02 * jax.random.normal(b, (15, d))
        self.blocks = [Block(key) for key in jax.random.split(c)]
        self.norm = eqx.nn.RMSNorm(d, use_bias=False)
        self.head = eqx.nn.Linear(d, letters, use_bias=False, key=e)

    def __call__(self, x):
        x = jax.vmap(self.embedding)(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def labels(params):
    def label(path, p):
        return "rest" if path[0].name in ("embedding", "positions") or p.ndim < 2 else "matrix"

    return jax.tree.map_with_path(label, params)


data_key, init_key, train_key = jax.random.split(jax.random.key(0), 3)
model = Network(init_key)
parts = [optax.linear_schedule(0, 0.02, 20), optax.constant_schedule(0.02)]
rate = optax.join_schedules([*parts, optax.linear_schedule(0.02, 0, 80)], [20, 220])
rules = {"matrix": optax.contrib.muon(rate, weight_decay=0.0), "rest": optax.adam(rate)}
optimizer = optax.multi_transform(rules, labels)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, slots, x, y):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), slots, value


x, y = texts(data_key, 30 * 64)
losses, key = [], train_key
for _ in range(10):
    key, order_key = jax.random.split(key)
    order, values = jax.random.permutation(order_key, len(x)), []
    for i in range(0, len(x), 64):
        rows = order[i : i + 64]
        model, slots, value = step(model, slots, x[rows], y[rows])
        values.append(value)
    losses.append(sum(values) / len(values))
print("loss per token of epochs 2, 6, 10:", " ".join(f"{value:.2f}" for value in losses[1::4]))
x, y = texts(jax.random.key(1), 500)
logits = jax.vmap(model)(x)
print(f"letters of new texts' second half: {(logits.argmax(-1) == y)[:, 7:].mean():.2f} right")
