"""The checks every mechanism must pass, for the library's own and for users' gates."""
