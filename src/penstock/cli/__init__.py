"""The command line: one thin file a verb; every verb is a call a user could make from Python."""
