"""Synthetic videos with known labels: drawn shapes, and Fashion-MNIST pictures that move."""
