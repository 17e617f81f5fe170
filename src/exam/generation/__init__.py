"""New questions to train on, from any corpus."""
