"""What is delivered: packages, units and the image's recipe."""
