"""Random views of image batches: chains of stages, two of which are policies; ops has the arithmetic."""
