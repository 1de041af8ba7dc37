"""Shared operations: each has a reference, and faster backends where they pay."""
