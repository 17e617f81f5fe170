"""Causal language models as readers."""
