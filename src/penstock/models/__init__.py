"""Assemblies with sockets for mechanisms."""
