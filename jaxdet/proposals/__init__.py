"""Where an object may be."""
