"""Answers: saved predictions, baselines, results and submissions."""
