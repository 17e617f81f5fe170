"""Bundle what a machine without a network needs to answer: runs, index, weights and wheels."""
