"""exam: open-book multiple-choice exams with the Hugging Face Trainer."""

__version__ = "0.1.0"
