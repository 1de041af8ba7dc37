"""The room of activations: pointwise functions and gated feed-forward layers."""
