"""Coordinates only: boxes, anchors, codes, suppression. No images, no parameters."""
