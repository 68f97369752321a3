"""Optimisers of a batch of poses, one file each."""
