"""Ground that every room stands on, and that knows no video and no model: settings, files, progress, processes."""
