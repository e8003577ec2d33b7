"""Losses as (sum, count), one item or one image at a time."""
