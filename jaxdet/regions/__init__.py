"""Features of boxes, and the heads that read them."""
