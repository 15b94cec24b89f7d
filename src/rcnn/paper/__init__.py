"""The paper's experiments on any data set: one file a table, beside the numbers that the paper gives."""
