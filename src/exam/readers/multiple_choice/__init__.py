"""Readers: features, collator, model, training and prediction under the Hugging Face Trainer."""
