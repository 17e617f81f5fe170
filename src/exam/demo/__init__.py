"""The demo: its questions, its corpus's requirement, and `exam demo`."""
