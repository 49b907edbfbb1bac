import dp_accounting
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from fnn import data

train, test = data.split(data.load("digits"), 0.2, seed=0)
x, y = jnp.asarray(train.x / 16), jnp.asarray(train.y)
q, max_norm, noise, steps, delta = 0.1, 1.0, 2.0, 150, 1e-5
model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
# The aggregate divides by all examples, not by the expected number of those drawn.
optimizer = optax.chain(
    optax.contrib.differentially_private_aggregate(max_norm, noise, jax.random.key(2)),
    optax.scale(1 / q),
    optax.sgd(0.1, 0.9),
)
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def loss(model, x, y, drawn):
    return drawn * optax.softmax_cross_entropy_with_integer_labels(model(x), y)


@eqx.filter_jit
def step(model, slots, key):
    drawn = jax.random.bernoulli(key, q, y.shape)
    grads = jax.vmap(eqx.filter_grad(loss), (None, 0, 0, 0))(model, x, y, drawn)
    updates, slots = optimizer.update(grads, slots)
    return eqx.apply_updates(model, updates), slots


for key in jax.random.split(jax.random.key(1), steps):
    model, slots = step(model, slots, key)
prediction = jax.vmap(model)(jnp.asarray(test.x / 16))
one = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise))
epsilon = dp_accounting.pld.PLDAccountant().compose(one, steps).get_epsilon(delta)
accuracy = (prediction.argmax(-1) == test.y).mean()
print(f"({epsilon:.2f}, {delta})-differentially private, accuracy {accuracy:.2f}")
