"""The paper's experiments on any data set: one file per table, next to the numbers of the paper."""
