"""jaxdet: what is in an image, and where, as pure JAX functions."""
