# %% [markdown]
# # Check a kernel
#
# A fused layer norm with a derivative rule of its own, as one writes it for speed. Is the rule right?

# %%
import jax
import jax.numpy as jnp

from fnn import verify


@jax.custom_vjp
def normalised(x, scale):
    """Each row of x, with mean 0 and variance 1, times scale."""
    return forward(x, scale)[0]


def forward(x, scale):
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return centred * inverse * scale, (centred * inverse, inverse, scale)


def backward(residuals, dy):
    z, inverse, scale = residuals
    dz = dy * scale
    dx = (dz - dz.mean(-1, keepdims=True)) * inverse
    return dx, (dy * z).sum(0)


normalised.defvjp(forward, backward)


# %% [markdown]
# The reference is the same function in plain operations, which autodiff differentiates.


# %%
def plain(x, scale):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-5) * scale


x = jax.random.normal(jax.random.key(0), (16, 8))
scale = jnp.linspace(0.5, 1.5, 8)
report = verify.check_custom(normalised, x, scale, reference=plain)
report

# %% [markdown]
# The value and the gradient of `scale` pass; the gradient of `x` fails. The rule forgets that the
# variance depends on x too. With its third term it passes:


# %%
def corrected(residuals, dy):
    z, inverse, scale = residuals
    dz = dy * scale
    along = z * (dz * z).mean(-1, keepdims=True)
    return (dz - dz.mean(-1, keepdims=True) - along) * inverse, (dy * z).sum(0)


fixed = jax.custom_vjp(lambda x, scale: forward(x, scale)[0])
fixed.defvjp(forward, corrected)
assert report.verdict == "fail"
report = verify.check_custom(fixed, x, scale, reference=plain)
report.raise_for_verdict()
report
