"""The same network on a mesh of devices, by `jax.shard_map` and XLA's collectives.

    replicated      data parallelism: examples split, params replicated on each device
    fully_sharded   data parallelism: examples, params and optimizer state split
    sharded         tensor parallelism: a layer split, between `copy_to` and `sum_over`
    mlp             `fnn.mlp` with tensor parallelism, with the same params
    specs           which part of an array each device holds; `create` creates it there

`fnn.make_step`, `make_epoch`, `make_train` and `fit` use these when given a mesh.
"""

from fnn.parallel.data import fully_sharded as fully_sharded, replicated as replicated
from fnn.parallel.examples import ShardedExamples as ShardedExamples
from fnn.parallel.partition import create as create, shardings as shardings, specs as specs
from fnn.parallel.tensor import (
    column_dense as column_dense,
    copy_to as copy_to,
    mlp as mlp,
    row_dense as row_dense,
    sharded as sharded,
    sum_over as sum_over,
)
