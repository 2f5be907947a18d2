"""Training and scoring of candidates: feature cache, closed-form start, reconstruction, fine-tuning, references."""
