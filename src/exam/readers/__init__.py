"""Readers: word overlap, multiple-choice encoders and causal language models."""
