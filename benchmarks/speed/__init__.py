"""Speed, one command per claim; the tables' files are in ../results/."""
