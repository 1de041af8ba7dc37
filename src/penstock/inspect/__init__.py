"""Watch gates and look inside models."""
