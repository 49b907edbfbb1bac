import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.9, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
test_x, test_y = jnp.asarray(test.x / 16), jnp.asarray(test.y)
optimizer = optax.adam(1e-2)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0), 0))
def step(model, slots, rows):
    grads = eqx.filter_grad(loss)(model, x[rows], y[rows])
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


keys = jax.random.split(jax.random.key(0), 8)
model = eqx.filter_vmap(lambda key: eqx.nn.MLP(64, 10, 64, 2, key=key))(keys)
slots = eqx.filter_vmap(lambda model: optimizer.init(eqx.filter(model, eqx.is_array)))(model)
key = jax.random.key(1)
for _ in range(40):
    key, order_key = jax.random.split(key)
    order_keys = jax.random.split(order_key, 8)
    order = jax.vmap(jax.random.permutation, (0, None))(order_keys, len(x))
    for i in range(0, len(x), 32):
        model, slots = step(model, slots, order[:, i : i + 32])
apply = eqx.filter_vmap(lambda model: jax.nn.softmax(jax.vmap(model)(test_x)))
members = apply(model)
nll = lambda p: -jnp.log(p[jnp.arange(len(test_y)), test_y]).mean()
losses = jax.vmap(nll)(members)
loss_of_all = nll(members.mean(0))
print(f"the ensemble's loss is below that of its best member: {loss_of_all < losses.min()}")
