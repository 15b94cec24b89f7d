"""From a data set to a trained detector."""
