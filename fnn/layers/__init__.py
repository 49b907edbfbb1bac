"""Layers that are not activations, one kind per file. `fnn/__init__.pyi` has their public names."""
