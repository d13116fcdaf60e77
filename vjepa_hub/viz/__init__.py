"""Pictures and pages in one style, drawn by matplotlib from arrays and typed values."""
