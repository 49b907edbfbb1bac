import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

digits = data.load("digits")
x, y = jnp.asarray(digits.x / 16), jnp.asarray(digits.y)


def new_head(key):
    return eqx.nn.Linear(64, 10, key=key)


def loss(model, x, y):
    trunk, head = model
    logits = jax.vmap(lambda x: head(trunk(x)))(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def trained(model, optimizer, x, y, batch_size, epochs, key):
    params, static = eqx.partition(model, eqx.is_array)

    def step(state, rows):
        params, slots = state
        grads = eqx.filter_grad(loss)(eqx.combine(params, static), x[rows], y[rows])
        updates, slots = optimizer.update(grads, slots)
        return (eqx.apply_updates(params, updates), slots), None

    def epoch(state, key):
        order = jax.random.permutation(key, len(x))
        full = len(x) - len(x) % batch_size
        state, _ = jax.lax.scan(step, state, order[:full].reshape(-1, batch_size))
        return (step(state, order[full:]) if full < len(x) else (state, None))[0], None

    keys = jax.random.split(key, epochs)
    (params, _), _ = jax.lax.scan(epoch, (params, optimizer.init(params)), keys)
    return eqx.combine(params, static)


keys = jax.random.split(jax.random.key(0))
trunk = eqx.nn.MLP(64, 64, 64, 1, final_activation=jax.nn.relu, key=keys[0])
start = (trunk, new_head(keys[1]))
learned, _ = trained(start, optax.adam(3e-3), x[:1000], y[:1000], 32, 20, jax.random.key(1))


def accuracy(trunk_rate, head_rate, key):
    order = 1000 + jax.random.permutation(key, len(x) - 1000)
    few, rest = order[:20], order[20:]
    rates = {"trunk": optax.adam(trunk_rate), "head": optax.adam(head_rate)}
    start = (learned, new_head(key))
    label = lambda name, part: jax.tree.map(lambda _: name, eqx.filter(part, eqx.is_array))
    labels = (label("trunk", start[0]), label("head", start[1]))
    optimizer = optax.multi_transform(rates, labels)
    trunk, head = trained(start, optimizer, x[few], y[few], 10, 40, key)
    prediction = jax.vmap(lambda x: head(trunk(x)))(x[rest])
    return (prediction.argmax(-1) == y[rest]).mean()


keys, rates = jax.random.split(jax.random.key(2), 8), jnp.array([1e-3, 3e-3, 1e-2, 3e-2])
mean = jax.jit(lambda *rates: jax.vmap(accuracy, (None, None, 0))(*rates, keys).mean())
one, two = max(mean(rate, rate) for rate in rates), mean(1e-4, 1e-2)
print(f"accuracy {one:.2f} with one rate, {two:.2f} with two, better: {two > one + 0.02}")
