"""Coordinates only: boxes, anchors, codes, suppression. No images, no parameters.

Boxes are (x1, y1, x2, y2), float32, absolute pixels, half-open: column i covers [i, i + 1), so
w = x2 - x1. Sizes are (height, width). A box whose x2 <= x1 or y2 <= y1 has no area.

Letters of the shapes in this package:
  *b  any leading axes: the function works on each box alone
  n   boxes or objects of one image: the function works on them as a set; vmap it over images
  m   anchors or other boxes of the same image
  k   slots of a result of fixed size
  a   anchors of one cell of a grid
"""
