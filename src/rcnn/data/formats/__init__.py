"""Find, read and write labels in the formats that people use, such as VOC, COCO, YOLO and those of annotation tools."""
