"""Tasks, training, comparison, results and report."""
