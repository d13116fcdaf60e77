"""Frozen encoders that are evaluated: V-JEPA, timm, transformers, pixels."""
