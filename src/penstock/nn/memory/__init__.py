"""The room of memory: learned stores that a token reads from."""
