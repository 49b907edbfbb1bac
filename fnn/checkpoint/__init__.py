"""Trees of arrays in files: one file in the safetensors format, or a folder of one per process."""

from fnn.checkpoint.archive import (
    CheckpointError as CheckpointError,
    load as load,
    read_metadata as read_metadata,
    save as save,
)
