"""Readers, checks, augmentation and loading of labelled images."""
