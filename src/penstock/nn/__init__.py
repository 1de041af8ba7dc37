"""The mechanisms: a room each, a file each."""
