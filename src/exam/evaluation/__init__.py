"""Predictions, ensembles, scores beside baselines, and submissions."""
