"""`exam infer`: what several readers, or passes of one, make of questions together."""
