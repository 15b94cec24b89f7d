"""Load, augment and batch labelled images."""
