"""From a folder on disk to batches: data sets, images, the pixel cache, augmentation, sampling."""
