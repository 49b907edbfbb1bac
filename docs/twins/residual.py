import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(32)
        self.linear = eqx.nn.Linear(32, 32, key=key)

    def __call__(self, x):
        return x + jax.nn.relu(self.linear(self.norm(x)))


class Network(eqx.Module):
    first: eqx.nn.Linear
    blocks: Block
    last: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(64, 32, key=a)
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(b, 64))
        self.last = eqx.nn.Linear(32, 10, key=c)

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        one = lambda x, block: (eqx.combine(block, static)(x), None)
        return self.last(jax.lax.scan(one, self.first(x), arrays)[0])


model = Network(jax.random.key(0))
optimizer = optax.adam(3e-3)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
def step(model, slots, x, y):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, y)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots, value


key = jax.random.key(1)
for _ in range(8):
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(x))
    for i in range(0, len(x), 64):
        model, slots, value = step(model, slots, x[order[i : i + 64]], y[order[i : i + 64]])
prediction = jax.vmap(model)(jnp.asarray(test.x / 16))
print(f"accuracy {(prediction.argmax(-1) == test.y).mean():.2f}")
