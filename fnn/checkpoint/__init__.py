"""Save and load trees of arrays: one safetensors file, or a folder with one file per process."""

from fnn.checkpoint.archive import (
    CheckpointError as CheckpointError,
    load as load,
    read_metadata as read_metadata,
    save as save,
)
