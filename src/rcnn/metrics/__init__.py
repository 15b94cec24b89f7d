"""Scores of detections and proposals."""
