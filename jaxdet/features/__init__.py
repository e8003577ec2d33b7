"""Networks from images to feature maps, and their norms."""
