"""Write a detector as a file that runs without PyTorch, and compare the two."""
