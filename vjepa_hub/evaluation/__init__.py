"""Frozen evaluation and fine-tuning: the only place where labels appear."""
