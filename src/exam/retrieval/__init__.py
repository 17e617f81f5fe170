"""Contexts: from questions and a corpus to ranked passages in a file."""
