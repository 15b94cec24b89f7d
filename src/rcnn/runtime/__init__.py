"""What runs a detector's network on a batch: PyTorch, or another runtime on an exported file."""
