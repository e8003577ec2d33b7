"""Drawn boxes and plots. Host NumPy."""
