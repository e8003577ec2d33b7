"""Images to images: sampling and warps; JAX."""
