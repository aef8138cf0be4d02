"""Training of a segmentation network: images with masks, tiles, loss, figures."""
