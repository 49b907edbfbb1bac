"""The gradient checker: hand-written derivatives and update rules against independent references.

check_layer       a layer's backward
check_loss        a loss's gradient
check_gradients   any function that returns a value and its gradient
check_vjp         any forward and backward pair
check_custom      any function with a derivative rule of its own, against the plain function
check_optimizer   an update rule, against the same rule in numpy
search            looks for inputs at which a forward and backward pair is wrong
check_rules       all custom rules of a module
search_custom     looks for arguments at which a function's own rule is wrong

Each returns a `Report`.
"""

from fnn.verify._custom import check_custom as check_custom
from fnn.verify._gradients import (
    check_gradients as check_gradients,
    check_layer as check_layer,
    check_loss as check_loss,
    check_vjp as check_vjp,
)
from fnn.verify._report import Report as Report
from fnn.verify._search import (
    check_rules as check_rules,
    search as search,
    search_custom as search_custom,
)
from fnn.verify.optimizers import check_optimizer as check_optimizer
