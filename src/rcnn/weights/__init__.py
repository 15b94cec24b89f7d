"""Reading, writing and adapting files of weights."""
