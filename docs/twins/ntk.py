import equinox as eqx
import jax
import jax.numpy as jnp
import optax

x = jax.random.normal(jax.random.key(0), (32, 4))
y = jnp.sin(x.sum(-1, keepdims=True))


def kernel(model):
    grads = jax.vmap(lambda x: eqx.filter_grad(lambda model: model(x)[0])(model))(x)
    rows = jnp.concatenate([g.reshape(32, -1) for g in jax.tree.leaves(grads)], 1)
    return rows @ rows.T


def loss(model):
    return jnp.square(jax.vmap(model)(x) - y).mean()


@eqx.filter_jit
def change(model):
    before = kernel(model)
    optimizer = optax.sgd(16 / jnp.linalg.norm(before, 2))
    params, static = eqx.partition(model, eqx.is_array)

    def step(state, _):
        params, slots = state
        grads = eqx.filter_grad(loss)(eqx.combine(params, static))
        updates, slots = optimizer.update(grads, slots)
        return (eqx.apply_updates(params, updates), slots), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=100)
    after = kernel(eqx.combine(params, static))
    return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)


models = [eqx.nn.MLP(4, 1, n, 2, jnp.tanh, key=jax.random.key(1)) for n in (64, 256, 1024)]
changes = [change(model) for model in models]
share = changes[-1] / changes[0]
print(f"at width 1024 it changes less than a quarter as much as at 64: {share < 0.25}")
