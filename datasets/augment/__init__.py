"""Random views of image batches. views: the paper's; stages: what views consist of; ops: the arithmetic."""
