"""A network trained on a table or on arrays, with everything that its training decided."""
