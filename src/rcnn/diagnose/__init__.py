"""Pictures and tables that explain data, training and detections."""
