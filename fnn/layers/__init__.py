"""Layers that are not activations, one kind per file."""

from fnn.layers.conv import conv2d as conv2d
from fnn.layers.dense import dense as dense
from fnn.layers.dropout import dropout as dropout
from fnn.layers.embedding import embedding as embedding
from fnn.layers.flatten import flatten as flatten
from fnn.layers.norm import batch_norm as batch_norm, layer_norm as layer_norm
from fnn.layers.pool import max_pool as max_pool, mean_pool as mean_pool
