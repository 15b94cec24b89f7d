"""Detectors of other libraries and their formats, in and out."""
