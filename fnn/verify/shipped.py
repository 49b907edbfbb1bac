"""What `fnn verify` checks: everything that the library ships, or what a user's module names."""

import importlib
from collections.abc import Iterator

import jax

from fnn.base import Layer, Loss
from fnn.verify._gradients import check_layer, check_loss
from fnn.verify._report import Report
from fnn.verify.cases import ACTIVATIONS, LAYERS, LOSSES, OPTIMIZERS, WRAPPERS
from fnn.verify.optimizers import check_optimizer


def shipped() -> Iterator[tuple[str, Report]]:
    """The name of each layer, loss and optimizer of the library, and a report on it.

    An optimizer with settings is also checked with others than its defaults.
    """
    init_key, noise_key = jax.random.split(jax.random.key(0))
    for name, (layer, x) in (LAYERS | ACTIVATIONS).items():
        # Moved off its initial zeros and ones, so that no parameter is without effect.
        params = jax.tree.map(
            lambda p: p + 0.1 * jax.random.normal(noise_key, p.shape), layer.init(init_key)
        )
        yield name, check_layer(layer, params, x)
    for name, (loss, prediction, target) in LOSSES.items():
        yield name, check_loss(loss, prediction, target)
    weight_key, bias_key = jax.random.split(noise_key)
    params = {"W": jax.random.normal(weight_key, (6, 4)), "b": jax.random.normal(bias_key, (4,))}
    for name, rule in (OPTIMIZERS | WRAPPERS).items():
        for title, one in ((name, rule), (f"{name}, other settings", rule.changed())):
            if one:
                yield title, check_optimizer(one.make, one.rule, params, per_array=one.per_array)


def named(path: str) -> Report:
    """A report on the layer, loss or optimizer constructor at "package.module:name".

    It is checked at the inputs that its module gives as `name_inputs`, a tuple or a function
    that returns one:

        layer                   (params, x)
        loss                    (prediction, target)
        optimizer constructor   (rule, params), as for `verify.check_optimizer`

    Raises ValueError for another form of path or a name or inputs that the module lacks,
    TypeError for anything else under that name; ImportError where there is no such module.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise ValueError(f"expected package.module:name, got {path!r}")
    module = importlib.import_module(module_name)
    for needed in (name, f"{name}_inputs"):
        if not hasattr(module, needed):
            raise ValueError(f"{module_name} has no {needed}")
    checked, inputs = getattr(module, name), getattr(module, f"{name}_inputs")
    inputs = inputs() if callable(inputs) else inputs
    match checked:
        case Layer():
            return check_layer(checked, *inputs)
        case Loss():
            return check_loss(checked, *inputs)
        case _ if callable(checked):
            return check_optimizer(checked, *inputs)
    raise TypeError(f"{path}: expected a Layer, a Loss or an optimizer's constructor")
