"""Trained once more, and compared: does a recipe give what its record says."""
