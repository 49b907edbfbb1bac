"""The same network on a mesh of devices, by `jax.shard_map` and XLA's collectives.

    replicated      data parallelism: examples split, params replicated on each device
    fully_sharded   data parallelism: examples, params and optimizer state split
    sharded         tensor parallelism: a layer split, between `copy_to` and `sum_over`
    mlp             `fnn.mlp` with tensor parallelism, with the same params
    specs           which part of an array each device holds; `create` creates it there

`fnn.make_step`, `make_epoch`, `make_train` and `fit` use these when given a mesh.
"""

from fnn.parallel.data import fully_sharded, replicated
from fnn.parallel.examples import ShardedExamples
from fnn.parallel.partition import create, shardings, specs
from fnn.parallel.tensor import column_dense, copy_to, mlp, row_dense, sharded, sum_over

__all__ = [
    "ShardedExamples",
    "column_dense",
    "copy_to",
    "create",
    "fully_sharded",
    "mlp",
    "replicated",
    "row_dense",
    "sharded",
    "shardings",
    "specs",
    "sum_over",
]
