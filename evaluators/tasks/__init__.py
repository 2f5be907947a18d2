"""Tasks: data, loss, fine-tuning and metric."""
