"""The demo: its questions, its corpus's requirement, and `python -m exam.demo`."""
