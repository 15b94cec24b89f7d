"""Import and export of detectors in the formats of other libraries."""
