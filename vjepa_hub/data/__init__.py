"""Video file to batch, on the CPU: decoding, clip sampling, masks. Knows no model class."""
