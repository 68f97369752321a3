"""Real X-rays from files, with their cameras."""
