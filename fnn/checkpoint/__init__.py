"""Save and load trees of arrays: one safetensors file, or a folder with one file per process."""

from fnn.checkpoint.archive import CheckpointError, load, read_metadata, save

__all__ = ["CheckpointError", "load", "read_metadata", "save"]
