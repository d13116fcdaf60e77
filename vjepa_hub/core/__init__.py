"""What every room stands on, and what knows no video and no model: settings, files, progress, processes."""
