"""Pictures and annotations to padded batches. Host NumPy; never imports jax."""
