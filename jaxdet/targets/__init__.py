"""What a network should predict: matching and sampling."""
