"""Audit labels: train on parts of a data set, predict the rest, and rank the labels that may be wrong."""
