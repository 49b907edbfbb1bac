"""Layers with parameters, one kind per file."""

from fnn.layers.dense import dense as dense
from fnn.layers.norm import layer_norm as layer_norm
