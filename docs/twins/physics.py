import equinox as eqx
import jax
import jax.numpy as jnp
import optax

x, ends = jnp.linspace(-1, 1, 64), jnp.array([-1.0, 1.0])
model = eqx.nn.MLP("scalar", "scalar", 32, 2, jnp.tanh, key=jax.random.key(0))
optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))
slots = optimizer.init(eqx.filter(model, eqx.is_array))


def objective(model):
    second = jax.vmap(jax.grad(jax.grad(model)))(x)
    boundary = jax.vmap(model)(ends)
    return jnp.square(second / jnp.pi**2 + jnp.sin(jnp.pi * x)).mean() + jnp.square(boundary).sum()


@eqx.filter_jit
def step(model, slots):
    updates, slots = optimizer.update(eqx.filter_grad(objective)(model), slots)
    return eqx.apply_updates(model, updates), slots


for _ in range(3000):
    model, slots = step(model, slots)
error = jnp.abs(jax.vmap(model)(x) - jnp.sin(jnp.pi * x)).max()
print(f"the solution is sin(pi x) to two digits: {error < 0.01}")
