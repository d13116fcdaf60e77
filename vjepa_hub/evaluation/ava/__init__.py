"""Spatio-temporal action localisation on AVA: boxes, features of regions, training, mean average precision."""
