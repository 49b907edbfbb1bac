import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, y = jnp.asarray(digits.x / 16), jnp.asarray(digits.y)
keys = jax.random.split(jax.random.key(0), 3)
trunk = eqx.nn.MLP(64, 16, 64, 1, final_activation=jax.nn.relu, key=keys[0])
ten, two = eqx.nn.Linear(16, 10, key=keys[1]), eqx.nn.Linear(16, 2, key=keys[2])
optimizer = optax.adam(3e-3)


def loss(learned, fixed, x, y):
    trunk, head = eqx.combine(learned, fixed)
    logits = jax.vmap(lambda x: head(trunk(x)))(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@eqx.filter_jit
def step(learned, fixed, slots, x, y):
    grads = eqx.filter_grad(loss)(learned, fixed, x, y)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(learned, updates), slots


def trained(model, is_learned, x, y, epochs):
    learned, fixed = eqx.partition(model, is_learned)
    slots = optimizer.init(learned)
    key = jax.random.key(1)
    for _ in range(epochs):
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        for i in range(0, len(x), 30):
            rows = order[i : i + 30]
            learned, slots = step(learned, fixed, slots, x[rows], y[rows])
    return eqx.combine(learned, fixed)


def accuracy(model):
    trunk, head = model
    prediction = jax.vmap(lambda x: head(trunk(x)))(x[1030:])
    return (prediction.argmax(-1) == y[1030:] % 2).mean()


learned, _ = trained((trunk, ten), eqx.is_array, x[:1000], y[:1000], 30)
few = x[1000:1030], y[1000:1030] % 2
scratch = trained((trunk, two), eqx.is_array, *few, 300)
only_head = (jax.tree.map(lambda _: False, learned), jax.tree.map(eqx.is_array, two))
tuned = trained((learned, two), only_head, *few, 300)
print(f"odd or even: accuracy {accuracy(scratch):.2f} from scratch, {accuracy(tuned):.2f} tuned")
