import equinox as eqx
import jax
import jax.numpy as jnp
import optax

carts, steps, discount = 32, 64, 0.98


def cart_pole(state, action):
    """The next state and whether the pole has fallen (Barto, Sutton & Anderson 1983)."""
    position, speed, angle, spin = state.T
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = (jnp.where(action, 10.0, -10.0) + 0.05 * spin**2 * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (2 / 3 - cos**2 / 22)
    state += 0.02 * jnp.stack([speed, push - turn * cos / 22, spin, turn], -1)
    return state, (jnp.abs(state[:, 0]) > 2.4) | (jnp.abs(state[:, 2]) > 0.21)


class Actor(eqx.Module):
    hidden: eqx.nn.Linear
    policy: eqx.nn.Linear
    value: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.hidden = eqx.nn.Linear(4, 64, key=a)
        self.policy = eqx.nn.Linear(64, 2, key=b)
        self.value = eqx.nn.Linear(64, "scalar", key=c)

    def __call__(self, x):
        hidden = jnp.tanh(self.hidden(x))
        return self.policy(hidden), self.value(hidden)


def log_probability(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]


def loss(model, batch):
    x, action, old, advantage, aim = batch
    logits, value = jax.vmap(model)(x)
    ratio = jnp.exp(log_probability(logits, action) - old)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return (jnp.square(value - aim) / 2 - gain).mean()


model, optimizer = Actor(jax.random.key(0)), optax.adam(3e-3)
params, static = eqx.partition(model, eqx.is_array)


def update(state, batch):
    params, slots = state
    grads = eqx.filter_grad(loss)(eqx.combine(params, static), batch)
    updates, slots = optimizer.update(grads, slots)
    return (eqx.apply_updates(params, updates), slots), None


def epoch(state, batch, key):
    order = jax.random.permutation(key, carts * steps).reshape(-1, 512)
    batches = jax.tree.map(lambda a: a[order], batch)
    return jax.lax.scan(update, state, batches)[0]


def iteration(carry, key):
    state, start = carry
    model = jax.vmap(eqx.combine(state[0], static))
    act_key, train_key = jax.random.split(key)

    def act(poles, key):
        a, b = jax.random.split(key)
        logits, value = model(poles)
        action = jax.random.categorical(a, logits)
        moved, fell = cart_pole(poles, action)
        fresh = jax.random.uniform(b, poles.shape, minval=-0.05, maxval=0.05)
        noted = poles, action, log_probability(logits, action), value, fell
        return jnp.where(fell[:, None], fresh, moved), noted

    def lead(later, now):
        advantage, next_value = later
        value, fell = now
        kept = jnp.where(fell, 0, discount)
        advantage = 1 + kept * next_value - value + 0.95 * kept * advantage
        return (advantage, value), advantage

    keys = jax.random.split(act_key, steps)
    end, (seen, action, old, value, fell) = jax.lax.scan(act, start, keys)
    last = model(end)[1]
    _, advantage = jax.lax.scan(lead, (0 * last, last), (value, fell), reverse=True)
    unit = (advantage - advantage.mean()) / advantage.std()
    batch = jax.tree.map(jnp.concatenate, (seen, action, old, unit, advantage + value))
    for key in jax.random.split(train_key, 4):
        state = epoch(state, batch, key)
    return (state, end), fell.mean()


start = (params, optimizer.init(params)), jnp.zeros((carts, 4))
keys = jax.random.split(jax.random.key(1), 60)
_, falls = jax.jit(lambda *a: jax.lax.scan(iteration, *a))(start, keys)
first, last = 1 / falls[0], 1 / falls[-20:].mean()
print(f"a fall every {first:.0f} steps, later less than a fifth as often: {last > 5 * first}")
