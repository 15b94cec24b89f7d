"""External proposals: read from files, or searched by programs that are not trained here."""
