"""The method, as tensor code."""
