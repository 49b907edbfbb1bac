"""Weight initializers: `init(key, shape, dtype=None) -> Array`, for shape (d_out, d_in).

They are those of `jax.nn.initializers` for W with the input's axis last. dtype None is JAX's
default float dtype. They keep the variance of activations or gradients about equal across layers:

    glorot  Var W = 2 / (d_in + d_out)    Glorot & Bengio 2010; for tanh, sigmoid, identity
    he      Var W = 2 / d_in              He et al. 2015; for relu and similar
    lecun   Var W = 1 / d_in              LeCun et al. 1998; for selu
"""

from jax.nn import initializers as _jax

glorot_uniform = _jax.glorot_uniform(in_axis=-1, out_axis=-2)
glorot_normal = _jax.glorot_normal(in_axis=-1, out_axis=-2)
he_uniform = _jax.he_uniform(in_axis=-1, out_axis=-2)
he_normal = _jax.he_normal(in_axis=-1, out_axis=-2)
lecun_uniform = _jax.lecun_uniform(in_axis=-1, out_axis=-2)
lecun_normal = _jax.lecun_normal(in_axis=-1, out_axis=-2)
zeros = _jax.zeros
ones = _jax.ones
normal = _jax.normal
