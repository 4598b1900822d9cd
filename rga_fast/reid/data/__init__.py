"""Data sets, images, the pixel cache, augmentation, sampling and batches."""
