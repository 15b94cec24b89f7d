"""Images -> feature maps with known strides."""
