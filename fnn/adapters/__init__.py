"""Conversion from and to other libraries, none of which is imported here."""

from fnn.adapters.functions import (
    from_equinox as from_equinox,
    from_flax as from_flax,
    from_function as from_function,
    from_single as from_single,
)
from fnn.adapters.optax import from_optax as from_optax, to_optax as to_optax
from fnn.adapters.torch import (
    from_torch as from_torch,
    statistics_from_torch as statistics_from_torch,
    to_torch as to_torch,
)
