"""Fine-tuning of encoder and classifier on labelled videos."""
