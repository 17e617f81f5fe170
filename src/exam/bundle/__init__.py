"""What a machine without a network needs to answer an exam: runs, index, weights, wheels."""
