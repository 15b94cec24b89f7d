"""Find, read and write labels in the formats that people use: VOC, COCO, YOLO and CSV."""
