from fnn import (
    checkpoint as checkpoint,
    curvature as curvature,
    data as data,
    estimators as estimators,
    export as export,
    gradients as gradients,
    initializers as initializers,
    parallel as parallel,
    per_example as per_example,
    runs as runs,
    schedules as schedules,
    targets as targets,
    verify as verify,
)
from fnn.activations import (
    elementwise as elementwise,
    elu as elu,
    gelu as gelu,
    identity as identity,
    leaky_relu as leaky_relu,
    relu as relu,
    selu as selu,
    sigmoid as sigmoid,
    silu as silu,
    softmax as softmax,
    softplus as softplus,
    tanh as tanh,
)
from fnn.adapters.functions import (
    from_equinox as from_equinox,
    from_flax as from_flax,
    from_function as from_function,
    from_loss as from_loss,
    from_single as from_single,
)
from fnn.adapters.optax import from_optax as from_optax, to_optax as to_optax
from fnn.adapters.torch import (
    from_torch as from_torch,
    statistics_from_torch as statistics_from_torch,
    to_torch as to_torch,
)
from fnn.autodiff import differentiable as differentiable
from fnn.backprop import objective as objective, value_and_grad as value_and_grad
from fnn.base import (
    Layer as Layer,
    Loss as Loss,
    Optimizer as Optimizer,
    Varying as Varying,
    apply as apply,
    at as at,
    statistics as statistics,
)
from fnn.combinators import (
    add as add,
    concatenate as concatenate,
    fork as fork,
    frozen as frozen,
    gated as gated,
    lora as lora,
    masked as masked,
    on as on,
    repeat as repeat,
    serial as serial,
    skip as skip,
    stop_gradient as stop_gradient,
)
from fnn.errors import Error as Error
from fnn.inspection import layer_outputs as layer_outputs, summary as summary
from fnn.layers.attention import attention as attention
from fnn.layers.conv import conv1d as conv1d, conv2d as conv2d
from fnn.layers.dense import dense as dense
from fnn.layers.dropout import dropout as dropout
from fnn.layers.embedding import embedding as embedding
from fnn.layers.flatten import flatten as flatten, unflatten as unflatten
from fnn.layers.norm import (
    batch_norm as batch_norm,
    group_norm as group_norm,
    layer_norm as layer_norm,
    rms_norm as rms_norm,
)
from fnn.layers.pool import max_pool as max_pool, mean_pool as mean_pool
from fnn.layers.positions import positions as positions
from fnn.losses import (
    binary_cross_entropy as binary_cross_entropy,
    cosine as cosine,
    cross_entropy as cross_entropy,
    focal as focal,
    gaussian_nll as gaussian_nll,
    heads as heads,
    huber as huber,
    info_nce as info_nce,
    mae as mae,
    mse as mse,
    poisson_nll as poisson_nll,
    quantile as quantile,
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
    smoothed_cross_entropy as smoothed_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
)
from fnn.memory import remat as remat, reversible as reversible
from fnn.models import cnn as cnn, mlp as mlp
from fnn.optimizers import (
    adagrad as adagrad,
    adam as adam,
    adamw as adamw,
    lion as lion,
    momentum as momentum,
    muon as muon,
    nadam as nadam,
    rmsprop as rmsprop,
    sgd as sgd,
)
from fnn.precision import compute_in as compute_in
from fnn.reductions import (
    Direct as Direct,
    Masked as Masked,
    Outer as Outer,
    Rows as Rows,
    Sum as Sum,
    total as total,
)
from fnn.training.fitting import DivergedError as DivergedError, Progress as Progress, fit as fit
from fnn.training.steps import (
    make_epoch as make_epoch,
    make_step as make_step,
    make_train as make_train,
)
from fnn.wrappers import (
    accumulate as accumulate,
    add_l2 as add_l2,
    average as average,
    by_name as by_name,
    clip_by_global_norm as clip_by_global_norm,
    partition as partition,
    scale_loss as scale_loss,
)

__version__: str
__all__: list[str]
