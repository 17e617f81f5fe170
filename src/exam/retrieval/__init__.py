"""Retrieve contexts: rank the passages of a corpus for each question."""
