"""Pictures and tables that explain."""
