"""`infer.py`: what several readers, or passes of one, make of questions together."""
