"""Heads on frozen features: pooling and linear heads, nearest neighbours, metrics."""
