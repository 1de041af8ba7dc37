"""Decide: how logits become openness, how hard gates get gradients, and how a budget is kept."""
