"""Where models come from: the registry, loading by name, and conversion of released files."""
