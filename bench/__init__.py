"""What only developers run: benchmarks of projectors, studies, and their results."""
