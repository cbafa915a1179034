"""What is fast, measured: one command per claim."""
