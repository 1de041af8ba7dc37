"""The command line: one thin file a verb; every verb is a call a user could make from Python.

A verb is a function whose signature and docstring are its flags and its help, entered in `app.VERBS`. A verb raises a
`PenstockError` for what the user can put right, and `app.main` prints it in one line. What is slow to import is imported
inside the function.
"""

from penstock.cli.app import VERBS, application, flags, main

__all__ = ["VERBS", "application", "flags", "main"]
