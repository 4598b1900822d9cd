"""An index: the features of a gallery in a folder, to be searched."""
