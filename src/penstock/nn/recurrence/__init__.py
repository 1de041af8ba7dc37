"""The room of recurrence: a state that is carried, and gates on what it keeps."""
