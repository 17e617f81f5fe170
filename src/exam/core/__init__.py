"""Services that know nothing of exams: stage folders, files, checkpoints, logging, processes."""
